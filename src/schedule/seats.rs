//! Who is worked on, who waits, and who gives its place back when pages run out.
//!
//! A request takes a seat when the pages it needs now are there, not those it might need in the
//! end; so pages can run out, and then the last in rank gives its own back and comes again later.
//! Only a strictly lower priority number takes a seat from somebody: two requests never take it
//! from each other in turn. Invariant: who is first in rank keeps its seat, so work always goes on.

use super::Rank;

/// What a request holds or wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Its turn.
    pub rank: Rank,
    /// Pages it holds.
    pub held_pages: usize,
    /// Pages it needs to feed everything there is to feed now.
    pub needed_pages: usize,
}

/// What to do about the first of those who wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Give it a seat.
    Admit,
    /// Take the seat of the one with this index first.
    Preempt(usize),
    /// Not now.
    Wait,
}

/// Pages a seated request may soon ask for beyond its claim: the next page of each model.
const GROWTH_PAGES: usize = 2;

/// Whether `first`, the first in rank of those who wait, gets a seat among `seated`.
///
/// `available_pages` are free or hold only cached prefixes.
#[must_use]
pub fn admit(
    first: &Claim,
    seated: &[Claim],
    seats_max: usize,
    available_pages: usize,
) -> Admission {
    let promised = |c: &Claim| c.needed_pages.saturating_sub(c.held_pages) + GROWTH_PAGES;
    let wanted = promised(first) + seated.iter().map(promised).sum::<usize>();
    // Alone it has the whole pool, in which any single request fits.
    if seated.is_empty() || (seated.len() < seats_max && wanted <= available_pages) {
        return Admission::Admit;
    }
    let last = seated.iter().enumerate().max_by_key(|(_, c)| c.rank);
    match last {
        Some((i, last)) if first.rank.priority < last.rank.priority => Admission::Preempt(i),
        _ => Admission::Wait,
    }
}

/// Who gives its pages back when somebody cannot go on: the last in rank that holds any, but never
/// the only one seated.
#[must_use]
pub fn victim(seated: &[Claim]) -> Option<usize> {
    let first = seated.iter().map(|c| c.rank).min()?;
    let holders = seated.iter().enumerate().filter(|(_, c)| c.rank != first && c.held_pages > 0);
    holders.max_by_key(|(_, c)| c.rank).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claim(priority: i32, arrival: u64, held_pages: usize, needed_pages: usize) -> Claim {
        Claim { rank: Rank { priority, arrival }, held_pages, needed_pages }
    }

    #[test]
    fn pages_promised_to_the_seated_are_not_given_away() {
        let seated = [claim(0, 0, 2, 10)];
        let first = claim(0, 1, 0, 5);
        assert_eq!(admit(&first, &seated, 4, 17), Admission::Admit, "8 + 2 and 5 + 2");
        assert_eq!(admit(&first, &seated, 4, 16), Admission::Wait);
    }

    #[test]
    fn only_a_lower_priority_number_takes_a_seat() {
        let seated = [claim(0, 0, 3, 3), claim(1, 1, 3, 3), claim(1, 2, 3, 3)];
        assert_eq!(admit(&claim(1, 3, 0, 1), &seated, 3, 99), Admission::Wait);
        assert_eq!(admit(&claim(0, 3, 0, 1), &seated, 3, 99), Admission::Preempt(2));
        assert_eq!(admit(&claim(0, 3, 0, 1), &seated[..1], 1, 99), Admission::Wait);
        assert_eq!(admit(&claim(-1, 3, 0, 1), &seated[..1], 1, 99), Admission::Preempt(0));
        assert_eq!(admit(&claim(0, 3, 0, 99), &seated, 9, 50), Admission::Preempt(2));
    }

    #[test]
    fn the_youngest_of_the_lowest_priority_gives_its_pages_back_and_the_first_never() {
        let seated = [claim(5, 0, 3, 3), claim(0, 1, 3, 3), claim(0, 2, 3, 3), claim(5, 9, 0, 3)];
        assert_eq!(victim(&seated), Some(0), "who holds nothing has nothing to give");
        assert_eq!(victim(&seated[1..3]), Some(1));
        assert_eq!(victim(&seated[1..2]), None);
        assert_eq!(victim(&[]), None);
    }

    proptest! {
        #[test]
        fn no_two_requests_take_a_seat_from_each_other(
            claims in prop::collection::vec((-2i32..3, 1usize..9), 2..12),
            seats in 1usize..4, available in 0usize..30,
        ) {
            let mut seated: Vec<Claim> = claims
                .iter()
                .enumerate()
                .map(|(i, &(priority, pages))| claim(priority, i as u64, pages, pages))
                .collect();
            let first = seated.pop().expect("at least two");
            if let Admission::Preempt(last) = admit(&first, &seated, seats, available) {
                let out = std::mem::replace(&mut seated[last], first);
                let back = admit(&out, &seated, seats, available);
                prop_assert!(
                    !matches!(back, Admission::Preempt(i) if seated[i].rank == first.rank)
                );
            }
        }
    }
}
