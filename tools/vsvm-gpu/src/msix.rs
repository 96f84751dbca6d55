// SPDX-License-Identifier: GPL-2.0

//! Interrupts: MSI-X messages as writes to event descriptors.
//!
//! The client of a vfio device owns the vector table: it hands over one descriptor per vector,
//! tells which vectors are masked, and never passes on accesses to the table. What is left to the
//! device is to hold back messages while it may not send them, and to show in the pending bit
//! array which those are.

use std::fs::File;
use std::io::{self, Write};

use parking_lot::Mutex;

use crate::hw::VECTORS;

#[derive(Default)]
struct Vector {
    event: Option<File>,
    masked: bool,
    pending: bool,
}

#[derive(Default)]
struct State {
    enabled: bool,
    all_masked: bool,
    master: bool,
    vectors: Vec<Vector>,
}

impl State {
    /// Sends what is pending and may be sent.
    fn flush(&mut self) {
        if !self.enabled || self.all_masked || !self.master {
            return;
        }
        for vector in &mut self.vectors {
            let Some(event) = &mut vector.event else {
                continue;
            };
            if vector.pending && !vector.masked {
                // An event counter never fills up in practice, and a client that has gone needs
                // no interrupts.
                let _ = event.write_all(&1_u64.to_ne_bytes());
                vector.pending = false;
            }
        }
    }
}

/// The interrupt vectors.
pub(crate) struct Msix(Mutex<State>);

impl Msix {
    /// Returns vectors that lead nowhere yet.
    pub(crate) fn new() -> Self {
        Self(Mutex::new(State {
            vectors: (0..VECTORS).map(|_| Vector::default()).collect(),
            ..State::default()
        }))
    }

    /// Takes over what config space says: MSI-X enabled, all vectors masked, bus mastering on.
    pub(crate) fn configure(&self, enabled: bool, all_masked: bool, master: bool) {
        let mut state = self.0.lock();
        if !enabled {
            for vector in &mut state.vectors {
                vector.pending = false;
            }
        }
        state.enabled = enabled;
        state.all_masked = all_masked;
        state.master = master;
        state.flush();
    }

    /// Applies `change` to `count` vectors from `start`.
    fn change(
        &self,
        start: u32,
        count: u32,
        mut change: impl FnMut(&mut Vector),
    ) -> io::Result<()> {
        let end = start.checked_add(count).filter(|end| *end <= VECTORS);
        let mut state = self.0.lock();
        let vectors = end.and_then(|end| {
            let range = usize::try_from(start).ok()?..usize::try_from(end).ok()?;
            state.vectors.get_mut(range)
        });
        vectors
            .ok_or(io::ErrorKind::InvalidInput)?
            .iter_mut()
            .for_each(&mut change);
        state.flush();
        Ok(())
    }

    /// Connects vectors from `start` to `events`.
    pub(crate) fn connect(&self, start: u32, events: Vec<File>) -> io::Result<()> {
        let count = u32::try_from(events.len()).map_err(io::Error::other)?;
        let mut events = events.into_iter();
        self.change(start, count, |vector| vector.event = events.next())
    }

    /// Disconnects vectors.
    pub(crate) fn disconnect(&self, start: u32, count: u32) -> io::Result<()> {
        self.change(start, count, |vector| vector.event = None)
    }

    /// Disconnects and unmasks all vectors.
    pub(crate) fn disconnect_all(&self) {
        let mut state = self.0.lock();
        state.vectors.fill_with(Vector::default);
    }

    /// Masks or unmasks vectors.
    pub(crate) fn mask(&self, start: u32, count: u32, masked: bool) -> io::Result<()> {
        self.change(start, count, |vector| vector.masked = masked)
    }

    /// Raises vectors on behalf of the client.
    pub(crate) fn trigger(&self, start: u32, count: u32) -> io::Result<()> {
        self.change(start, count, |vector| vector.pending = true)
    }

    /// Raises a vector. While MSI-X is disabled nothing happens.
    pub(crate) fn raise(&self, vector: u32) {
        if self.0.lock().enabled {
            // The device's own vector numbers exist.
            let _ = self.trigger(vector, 1);
        }
    }

    /// Forgets what is pending.
    pub(crate) fn forget(&self) {
        for vector in &mut self.0.lock().vectors {
            vector.pending = false;
        }
    }

    /// Returns the pending bit array.
    pub(crate) fn pending(&self) -> u64 {
        let state = self.0.lock();
        let bits = state.vectors.iter().zip(0..);
        bits.fold(0, |bits, (vector, n)| {
            bits | (u64::from(vector.pending) << n)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rig::Events;

    fn connected() -> (Msix, Vec<Events>) {
        let msix = Msix::new();
        msix.configure(true, false, true);
        let (files, events) = (0..VECTORS).map(|_| Events::new()).unzip();
        msix.connect(0, files).unwrap();
        (msix, events)
    }

    #[test]
    fn each_vector_has_its_event() {
        let (msix, mut events) = connected();
        msix.raise(1);
        assert_eq!(
            events.iter_mut().map(Events::take).collect::<Vec<_>>(),
            [0, 1, 0]
        );
    }

    #[test]
    fn held_back_while_masked() {
        let (msix, mut events) = connected();
        for hold in 0..4 {
            match hold {
                0 => msix.mask(2, 1, true).unwrap(),
                1 => msix.configure(true, true, true),
                2 => msix.configure(true, false, false),
                _ => msix.disconnect(2, 1).unwrap(),
            }
            msix.raise(2);
            msix.raise(2);
            assert_eq!((events[2].take(), msix.pending()), (0, 1 << 2));
            match hold {
                0 => msix.mask(2, 1, false).unwrap(),
                3 => {
                    let (file, event) = Events::new();
                    events[2] = event;
                    msix.connect(2, vec![file]).unwrap();
                }
                _ => msix.configure(true, false, true),
            }
            assert_eq!((events[2].take(), msix.pending()), (1, 0));
        }
    }

    #[test]
    fn dropped_while_disabled() {
        let (msix, mut events) = connected();
        msix.mask(0, 1, true).unwrap();
        msix.raise(0);
        msix.configure(false, false, true);
        msix.raise(0);
        msix.mask(0, 1, false).unwrap();
        msix.configure(true, false, true);
        assert_eq!((events[0].take(), msix.pending()), (0, 0));
    }

    #[test]
    fn vectors_that_do_not_exist_are_refused() {
        let (msix, _events) = connected();
        assert!(msix.mask(VECTORS, 1, true).is_err());
        assert!(msix.trigger(1, u32::MAX).is_err());
        assert!(msix.disconnect(0, VECTORS + 1).is_err());
        msix.raise(VECTORS);
        assert_eq!(msix.pending(), 0);
    }
}
