//! What a trace says of two models' passes: how many there were, and how many were under way
//! together.
//!
//! The engine launches passes in chains and hears of a chain's end; the trace has one span a chain,
//! on the track of its model. Two chains overlap where their spans do. Which of their kernels ran
//! at the same moment only the GPU knows.

use crate::ids::Role;
use crate::telemetry::Track;
use serde_json::Value;

/// A chain of passes of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Chain {
    /// Whose.
    pub role: Role,
    /// From launch to results, in microseconds of the trace.
    pub span_us: [f64; 2],
    /// Passes.
    pub passes: u64,
    /// What they were for, as the trace names it.
    pub phases: String,
    /// Rows of all of them.
    pub rows: u64,
}

impl Chain {
    fn overlaps(&self, other: &Self) -> bool {
        let ([begin, end], [other_begin, other_end]) = (self.span_us, other.span_us);
        begin < other_end && other_begin < end
    }
}

/// Chains by [`Role::index`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Timeline([Vec<Chain>; 2]);

impl Timeline {
    /// Takes the chains out of the events of a [`crate::telemetry::Trace`].
    #[must_use]
    pub fn of(events: &[Value]) -> Self {
        let mut chains = Self::default();
        for role in Role::ALL {
            let (process, thread) = Track::Model(role).ids();
            let own = events.iter().filter(|event| {
                event["ph"] == "X" && event["pid"] == process && event["tid"] == thread
            });
            chains.0[role.index()] = own.map(|event| chain(role, event)).collect();
        }
        chains
    }

    /// The chains of a model, in the order of their ends.
    #[must_use]
    pub fn chains(&self, role: Role) -> &[Chain] {
        &self.0[role.index()]
    }

    /// Passes of a model.
    #[must_use]
    pub fn passes(&self, role: Role) -> u64 {
        self.chains(role).iter().map(|chain| chain.passes).sum()
    }

    /// Of these, passes in chains that were under way together with one of the other model.
    #[must_use]
    pub fn overlapped(&self, role: Role) -> u64 {
        let others = &self.0[1 - role.index()];
        let together = |chain: &&Chain| others.iter().any(|other| chain.overlaps(other));
        self.chains(role).iter().filter(together).map(|chain| chain.passes).sum()
    }

    /// The mean rows of the base's passes that did nothing but score.
    #[must_use]
    pub fn score_rows(&self) -> Option<f64> {
        let scores = || self.chains(Role::Base).iter().filter(|chain| chain.phases == "score");
        let passes: u64 = scores().map(|chain| chain.passes).sum();
        let rows: u64 = scores().map(|chain| chain.rows).sum();
        (passes > 0).then(|| rows as f64 / passes as f64)
    }
}

fn chain(role: Role, event: &Value) -> Chain {
    let count = |name: &str| event["args"][name].as_u64().unwrap_or(0);
    let at = |name: &str| event[name].as_f64().unwrap_or(0.0);
    Chain {
        role,
        span_us: [at("ts"), at("ts") + at("dur")],
        passes: count("passes"),
        phases: event["name"].as_str().unwrap_or_default().to_owned(),
        rows: count("rows"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn span(role: Role, at: [f64; 2], passes: u64, name: &str) -> Value {
        let (pid, tid) = Track::Model(role).ids();
        json!({ "ph": "X", "name": name, "ts": at[0], "dur": at[1] - at[0], "pid": pid,
            "tid": tid, "args": { "passes": passes, "rows": 6 * passes } })
    }

    #[test]
    fn passes_are_counted_and_those_under_way_together_too() {
        let events = [
            span(Role::Draft, [0.0, 4.0], 4, "draft"),
            span(Role::Draft, [5.0, 9.0], 3, "draft"),
            // Begins as the first ends: not together with it.
            span(Role::Base, [4.0, 7.0], 1, "score"),
            span(Role::Base, [20.0, 30.0], 2, "rewrite"),
            json!({ "ph": "i", "pid": 1, "tid": 0 }),
            json!({ "ph": "X", "pid": 2, "tid": 0, "ts": 0.0, "dur": 99.0, "args": {} }),
        ];
        let timeline = Timeline::of(&events);
        assert_eq!(Role::ALL.map(|role| timeline.passes(role)), [7, 3]);
        assert_eq!(Role::ALL.map(|role| timeline.overlapped(role)), [3, 1]);
        assert_eq!(timeline.score_rows(), Some(6.0));
        assert_eq!(Timeline::default().score_rows(), None);
    }
}
