// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The page protocol of the kernel's devcache core, tested on the host.
//!
//! The source is the one that the kernel compiles; this crate adds only tests, which look at every
//! state that can be reached.

// Admission is tested in the kernel, which collects the facts.
#[cfg(test)]
#[allow(dead_code)]
#[path = "../../../mm/devcache/state.rs"]
mod state;

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::state::{next, Admission, Backing, Event, State};
    use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

    const BACKINGS: [Backing; 2] = [Backing::Store, Backing::None];

    fn events(backing: Backing) -> Vec<Event> {
        let mut events = vec![
            Event::Copied,
            Event::CopyFailed,
            Event::Lookup,
            Event::CpuWrite,
            Event::DeviceWrite,
            Event::Evict,
            Event::Reclaim,
            Event::Truncate,
            Event::Admit(Admission { mark_dirty: true }),
        ];
        if backing == Backing::Store {
            events.push(Event::WrittenBack);
            events.push(Event::Admit(Admission { mark_dirty: false }));
        }
        events
    }

    /// All states reachable from a clean page, with the moves out of each.
    fn graph(backing: Backing) -> HashMap<State, Vec<(Event, State)>> {
        let mut graph = HashMap::new();
        let mut todo = VecDeque::from([State::InRam { dirty: false }]);
        while let Some(state) = todo.pop_front() {
            if graph.contains_key(&state) {
                continue;
            }
            let moves: Vec<_> = events(backing)
                .into_iter()
                .filter_map(|event| Some((event, next(state, event, backing)?)))
                .collect();
            todo.extend(moves.iter().map(|&(_, to)| to));
            graph.insert(state, moves);
        }
        graph
    }

    fn dirty(state: State) -> bool {
        match state {
            State::InRam { dirty }
            | State::MovingOut { dirty, .. }
            | State::OnDevice { dirty, .. }
            | State::MovingBack { dirty } => dirty,
            State::Gone { lost } => lost,
            State::Poisoned => true,
        }
    }

    #[test]
    fn newer_content_is_never_forgotten() {
        for backing in BACKINGS {
            for (from, moves) in graph(backing) {
                for (event, to) in moves {
                    // A loss that was reported, and a page that the user gave up, may start anew.
                    let may_become_clean = matches!(event, Event::WrittenBack | Event::Truncate)
                        || matches!(from, State::Gone { .. });
                    assert!(
                        !dirty(from) || dirty(to) || may_become_clean,
                        "{from:?} --{event:?}--> {to:?} with {backing:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn device_writes_only_to_dirty_pages() {
        for backing in BACKINGS {
            for (state, moves) in graph(backing) {
                if moves.iter().any(|&(event, _)| event == Event::DeviceWrite) {
                    assert!(dirty(state), "{state:?} with {backing:?}");
                }
            }
        }
    }

    #[test]
    fn cpu_and_device_never_both_have_the_page() {
        for backing in BACKINGS {
            for (state, moves) in graph(backing) {
                let can = |event| moves.iter().any(|&(e, _)| e == event);
                assert!(
                    !(can(Event::CpuWrite) && can(Event::DeviceWrite)),
                    "{state:?} with {backing:?}"
                );
            }
        }
    }

    #[test]
    fn every_state_has_a_way_out() {
        for backing in BACKINGS {
            for (state, moves) in graph(backing) {
                assert!(
                    moves.iter().any(|&(_, to)| to != state),
                    "{state:?} with {backing:?}"
                );
            }
        }
    }

    #[test]
    fn a_lost_copy_is_never_silent() {
        // What was newer than the backing store ends in an error, unless the user gave it up.
        for backing in BACKINGS {
            for (from, moves) in graph(backing) {
                for (event, to) in moves {
                    if to == (State::Gone { lost: false }) && dirty(from) {
                        assert!(
                            event == Event::Truncate,
                            "{from:?} --{event:?}--> {to:?} with {backing:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn all_kinds_of_state_are_reached() {
        for (backing, expected) in [
            (
                Backing::Store,
                BTreeMap::from([
                    ("Gone", 2),
                    ("InRam", 2),
                    ("MovingBack", 2),
                    ("MovingOut", 2),
                    ("OnDevice", 2),
                ]),
            ),
            (
                Backing::None,
                BTreeMap::from([
                    ("Gone", 1),
                    ("InRam", 2),
                    ("MovingBack", 1),
                    ("MovingOut", 1),
                    ("OnDevice", 1),
                    ("Poisoned", 1),
                ]),
            ),
        ] {
            let mut kinds = BTreeMap::new();
            for state in graph(backing).into_keys().collect::<HashSet<_>>() {
                let kind = match state {
                    State::InRam { .. } => "InRam",
                    State::MovingOut { .. } => "MovingOut",
                    State::OnDevice { .. } => "OnDevice",
                    State::MovingBack { .. } => "MovingBack",
                    State::Gone { .. } => "Gone",
                    State::Poisoned => "Poisoned",
                };
                *kinds.entry(kind).or_insert(0) += 1;
            }
            assert_eq!(kinds, expected, "with {backing:?}");
        }
    }
}
