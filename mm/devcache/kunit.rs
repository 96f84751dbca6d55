// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of the page protocol and of admission.

use crate::held::Held;
use crate::state::{
    admission,
    next,
    Admission,
    Backing,
    Event,
    Facts,
    Refusal,
    State, //
};
use kernel::prelude::*;

/// A folio that nothing speaks against.
fn good() -> Facts {
    Facts {
        against: [(false, Refusal::NotOptedIn); 12],
        pte_writable: false,
        backing: Backing::Store,
    }
}

#[kunit_tests(devcache)]
mod tests {
    use super::*;

    #[test]
    fn clean_read_only_page_stays_clean() {
        assert_eq!(admission(&good()), Ok(Admission { mark_dirty: false }));
    }

    #[test]
    fn device_write_permission_means_dirty() {
        let mut facts = good();
        facts.pte_writable = true;
        assert_eq!(admission(&facts), Ok(Admission { mark_dirty: true }));
    }

    #[test]
    fn shmem_is_dirty_even_through_a_read_only_mapping() {
        let mut facts = good();
        facts.backing = Backing::None;
        assert!(admission(&facts).is_ok_and(|terms| terms.mark_dirty));
    }

    #[test]
    fn first_reason_against_is_reported() {
        let mut facts = good();
        facts.against[3] = (true, Refusal::Pinned);
        facts.against[7] = (true, Refusal::Writeback);
        assert_eq!(admission(&facts), Err(Refusal::Pinned));
    }

    #[test]
    fn dirty_survives_the_round_trip() {
        let terms = Admission { mark_dirty: true };
        let mut state = State::InRam { dirty: false };
        for event in [
            Event::Admit(terms),
            Event::Copied,
            Event::DeviceWrite,
            Event::Lookup,
            Event::Copied,
        ] {
            let after = next(state, event, Backing::Store);
            assert!(after.is_some());
            state = after.unwrap_or(State::Poisoned);
        }
        assert_eq!(state, State::InRam { dirty: true });
    }

    #[test]
    fn lost_dirty_page_is_reported_or_poisoned() {
        let moving = State::MovingBack { dirty: true };
        assert_eq!(
            next(moving, Event::CopyFailed, Backing::Store),
            Some(State::Gone { lost: true })
        );
        assert_eq!(
            next(moving, Event::CopyFailed, Backing::None),
            Some(State::Poisoned)
        );
    }

    #[test]
    fn device_cannot_write_to_a_clean_page() {
        let state = State::OnDevice { dirty: false };
        assert_eq!(next(state, Event::DeviceWrite, Backing::Store), None);
    }

    #[test]
    fn held_pages_are_counted_once() -> Result {
        let mut held = Held::new(130)?;
        for page in [0, 64, 129, 64] {
            held.insert(page);
        }
        assert_eq!(held.count(), 3);
        assert_eq!(held.next(0), Some(0));
        assert_eq!(held.next(1), Some(64));
        assert_eq!(held.next(65), Some(129));
        assert_eq!(held.next(130), None);
        held.remove(64);
        held.remove(63);
        assert_eq!(held.count(), 2);
        assert_eq!(held.next(1), Some(129));
        Ok(())
    }
}
