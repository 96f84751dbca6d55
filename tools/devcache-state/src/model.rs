// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The page protocol under all interleavings of its users.
//!
//! The model has one page of a file with its three places of content (system memory, device memory,
//! backing store), CPU readers and writers, writeback in two steps, reclaim, truncation, eviction,
//! and a device that reads, writes and may fail. Content is a number: zero is a hole, each write
//! stores the next one. What is legal is asked of `state.rs`, and what the content becomes follows
//! from the move; so a move that the table should not allow shows as a wrong number.

use crate::state::{next, Admission, Backing, Event, State};
use stateright::{Checker, Model, Property};

type Content = u8;

/// The rule that says which moves are legal.
type Rule = fn(State, Event, Backing) -> Option<State>;

/// How many writes to follow. Three tell any two places of content apart, with one to spare.
const WRITES: Content = 3;

struct Page {
    backing: Backing,
    rule: Rule,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    state: State,
    /// What each place holds; stale where the state says that it is not in use.
    ram: Content,
    device: Content,
    store: Content,
    /// What a reader must see.
    expected: Content,
    /// Content on its way to the backing store, with the page busy until it has arrived.
    writeback: Option<Content>,
    writes: Content,
    /// A loss that the next `fsync()` will report.
    error: bool,
    /// Something happened that must not.
    wrong: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Protocol(Event),
    WritebackStart,
    WritebackEnd,
    CpuRead,
    DeviceRead,
    Fsync,
}

impl Page {
    fn after(&self, world: &World, event: Event) -> Option<World> {
        let mut after = world.clone();
        after.state = (self.rule)(world.state, event, self.backing)?;

        match (world.state, event) {
            // Writeback holds off migration and writes to disk what the page was.
            (_, Event::Admit(_) | Event::Truncate | Event::Reclaim)
                if world.writeback.is_some() =>
            {
                return None
            }
            (_, Event::CpuWrite | Event::DeviceWrite) => {
                if world.writes == WRITES {
                    return None;
                }
                after.writes += 1;
                after.expected = after.writes;
                match event {
                    Event::CpuWrite => after.ram = after.writes,
                    _ => after.device = after.writes,
                }
            }
            (State::MovingOut { .. }, Event::Copied) => after.device = world.ram,
            (State::MovingBack { .. }, Event::Copied) => after.ram = world.device,
            (State::MovingBack { .. }, Event::CopyFailed) => match after.state {
                // The loss is on record; older content is what users get, knowingly.
                State::Gone { lost: true } => {
                    after.error = true;
                    after.expected = world.store;
                }
                State::Poisoned => after.error = true,
                _ => (),
            },
            (State::Gone { .. }, Event::Lookup) => after.ram = world.store,
            (_, Event::Truncate) => {
                after.expected = 0;
                after.store = 0;
            }
            _ => (),
        }
        // Whoever finds the page in RAM may read it at once.
        if matches!(after.state, State::InRam { .. }) && after.ram != after.expected {
            after.wrong = Some("the CPU reads stale content");
        }
        if matches!(after.state, State::Gone { .. }) && after.store != after.expected {
            after.wrong = Some("newer content was dropped without an error");
        }
        Some(after)
    }
}

impl Model for Page {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            state: State::InRam { dirty: false },
            ram: 0,
            device: 0,
            store: 0,
            expected: 0,
            writeback: None,
            writes: 0,
            error: false,
            wrong: None,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
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
        if self.backing == Backing::Store {
            events.push(Event::Admit(Admission { mark_dirty: false }));
            actions.extend([Action::WritebackStart, Action::WritebackEnd]);
        }
        actions.extend(events.into_iter().map(Action::Protocol));
        actions.extend([Action::CpuRead, Action::DeviceRead, Action::Fsync]);
        if world.wrong.is_some() {
            actions.clear();
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        match action {
            Action::Protocol(event) => self.after(world, event),
            Action::WritebackStart if world.writeback.is_none() => {
                let mut after = self.after(world, Event::WrittenBack)?;
                after.writeback = Some(world.ram);
                Some(after)
            }
            Action::WritebackEnd => {
                let mut after = world.clone();
                after.store = after.writeback.take()?;
                Some(after)
            }
            Action::CpuRead if matches!(world.state, State::InRam { .. }) => {
                let mut after = world.clone();
                (world.ram != world.expected).then(|| {
                    after.wrong = Some("the CPU reads stale content");
                    after
                })
            }
            Action::DeviceRead if matches!(world.state, State::OnDevice { .. }) => {
                let mut after = world.clone();
                (world.device != world.expected).then(|| {
                    after.wrong = Some("the device reads stale content");
                    after
                })
            }
            // Nothing dirty and no writeback under way: fsync() returns.
            Action::Fsync
                if self.backing == Backing::Store
                    && world.writeback.is_none()
                    && matches!(
                        world.state,
                        State::InRam { dirty: false }
                            | State::OnDevice { dirty: false }
                            | State::Gone { .. }
                    ) =>
            {
                let mut after = world.clone();
                after.error = false;
                if world.store != world.expected {
                    after.wrong = Some("fsync() returned before the content was on disk");
                }
                (after != *world).then_some(after)
            }
            _ => None,
        }
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing wrong is seen", |_, world: &World| {
                world.wrong.is_none()
            }),
            Property::always("a poisoned page has an error", |_, world: &World| {
                world.state != State::Poisoned || world.error
            }),
            Property::sometimes(
                "the device writes and the CPU has it",
                |_, world: &World| {
                    matches!(world.state, State::InRam { .. })
                        && world.writes > 0
                        && world.ram == world.writes
                        && world.device == world.ram
                },
            ),
            Property::always("every state has a way out", |page: &Page, world: &World| {
                let mut actions = Vec::new();
                page.actions(world, &mut actions);
                world.wrong.is_some()
                    || actions
                        .into_iter()
                        .any(|action| page.next_state(world, action).is_some())
            }),
        ]
    }
}

/// Explores everything; returns the number of states and the names of the properties that fail.
fn explore(backing: Backing, rule: Rule) -> (usize, Vec<&'static str>) {
    let checker = Page { backing, rule }.checker().spawn_bfs().join();
    let failed = checker
        .discoveries()
        .into_keys()
        .filter(|name| *name != "the device writes and the CPU has it")
        .collect();
    (checker.unique_state_count(), failed)
}

#[test]
fn no_interleaving_loses_a_write() {
    for backing in [Backing::Store, Backing::None] {
        let (states, failed) = explore(backing, next);
        println!("page protocol with {backing:?}: {states} states explored");
        assert!(states > 100, "{states} states with {backing:?}");
        assert_eq!(failed, Vec::<&str>::new(), "with {backing:?}");
    }
}

/// Each rule that the protocol rests on, taken away, must be missed.
#[test]
fn broken_rules_are_found() {
    let broken: [(&str, Backing, Rule); 5] = [
        (
            "dirty at admission",
            Backing::Store,
            |state, event, backing| {
                match (state, event) {
                    // The device may write to a page that was admitted clean.
                    (State::OnDevice { .. }, Event::DeviceWrite) => Some(state),
                    _ => next(state, event, backing),
                }
            },
        ),
        (
            "dirty shmem at admission",
            Backing::None,
            |state, event, backing| match (state, event) {
                (State::InRam { dirty }, Event::Admit(_)) => Some(State::MovingOut { dirty }),
                (State::OnDevice { .. }, Event::DeviceWrite) => Some(state),
                _ => next(state, event, backing),
            },
        ),
        (
            "dirty travels back",
            Backing::Store,
            |state, event, backing| match (state, event) {
                (State::MovingBack { .. }, Event::Copied) => Some(State::InRam { dirty: false }),
                _ => next(state, event, backing),
            },
        ),
        (
            "publish after copy",
            Backing::Store,
            |state, event, backing| match (state, event) {
                (State::OnDevice { dirty }, Event::Lookup) => Some(State::InRam { dirty }),
                _ => next(state, event, backing),
            },
        ),
        (
            "poison instead of zeroes",
            Backing::None,
            |state, event, backing| match (state, event) {
                (State::MovingBack { .. }, Event::CopyFailed) => Some(State::Gone { lost: false }),
                _ => next(state, event, backing),
            },
        ),
    ];
    for (name, backing, rule) in broken {
        let (_, failed) = explore(backing, rule);
        assert!(!failed.is_empty(), "\"{name}\" is not missed");
    }
}
