// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The life of one page of a file, as a table of states and events.
//!
//! ```text
//!             admit            copied out
//!   InRam ------------> MovingOut -------> OnDevice
//!     ^  ^                  |                 | lookup, evict
//!     |  +------------------+                 v
//!     |     copy failed            +----- MovingBack
//!     |            copied back     |          | copy failed
//!     +----------------------------+          v
//!     ^                                Gone, or Poisoned when
//!     +---- read from disk ----------- there is no backing store
//! ```
//!
//! The kernel keeps no state variable for a page: what memory its folio is in, the folio lock and
//! the folio's flags are the state. This file says which moves are legal and what they mean, and
//! the core asks it. It uses `core` only, so that the same source is tested on the host.

/// Where the content of a page is, and what may happen to it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// A system folio in the page cache. The CPU reads and writes it.
    InRam {
        /// The content is newer than the backing store.
        dirty: bool,
    },
    /// Locked and unmapped; a copy to the device is under way. Nobody reads or writes it.
    MovingOut {
        /// The content is newer than the backing store.
        dirty: bool,
    },
    /// A device folio in the page cache. The CPU neither reads nor writes the content.
    OnDevice {
        /// The content is, or may at any time become, newer than the backing store. It was marked
        /// so when it was admitted, since the device reports no writes; only then it may write.
        dirty: bool,
    },
    /// Locked and unmapped; a copy to system memory is under way.
    MovingBack {
        /// The content is newer than the backing store.
        dirty: bool,
    },
    /// Not in the page cache. The next lookup reads the backing store.
    Gone {
        /// Newer content was lost, and the next `fsync()` says so.
        lost: bool,
    },
    /// The only copy was lost. Access is an error until the page is truncated.
    Poisoned,
}

/// What happens to a page.
// Some of it happens elsewhere in mm, and is here for the tests to see the whole.
#[cfg_attr(not(test), allow(dead_code))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// A driver migrates it, and admission was granted.
    Admit(Admission),
    /// The copy under way is complete.
    Copied,
    /// The copy under way failed, or the device is lost.
    CopyFailed,
    /// The CPU looks up the content: a read, a fault, a write, writeback.
    Lookup,
    /// The CPU writes.
    CpuWrite,
    /// The device writes.
    DeviceWrite,
    /// The content has reached the backing store.
    WrittenBack,
    /// The device needs the memory or goes away.
    Evict,
    /// Memory is short, and a folio that agrees with the backing store is dropped.
    Reclaim,
    /// The file no longer has this page.
    Truncate,
}

/// What loses if the content of a dirty page is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Backing {
    /// A disk: older content is there.
    Store,
    /// Nothing (shmem): the page cache has the only copy.
    None,
}

/// The terms on which a page moves to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Admission {
    /// Mark the folio dirty before it moves, for the device will be able to write.
    pub(crate) mark_dirty: bool,
}

/// The state after `event`, or `None` if `event` cannot happen in `state`.
///
/// A lookup in a moving state is not listed because it waits for the folio lock.
pub(crate) fn next(state: State, event: Event, backing: Backing) -> Option<State> {
    use State::*;

    Some(match (state, event) {
        (InRam { dirty }, Event::Admit(terms)) => MovingOut {
            dirty: dirty || terms.mark_dirty,
        },
        (InRam { dirty }, Event::Lookup) => InRam { dirty },
        (InRam { .. }, Event::CpuWrite) => InRam { dirty: true },
        (InRam { dirty: true }, Event::WrittenBack) => InRam { dirty: false },

        (MovingOut { dirty }, Event::Copied) => OnDevice { dirty },
        (MovingOut { dirty }, Event::CopyFailed) => InRam { dirty },

        (OnDevice { dirty: true }, Event::DeviceWrite) => state,
        (OnDevice { dirty }, Event::Lookup | Event::Evict) => MovingBack { dirty },

        (MovingBack { dirty }, Event::Copied) => InRam { dirty },
        (MovingBack { dirty }, Event::CopyFailed) => match backing {
            Backing::Store => Gone { lost: dirty },
            Backing::None => Poisoned,
        },

        (Gone { .. }, Event::Lookup) => InRam { dirty: false },
        (Poisoned, Event::Lookup) => Poisoned,

        (InRam { dirty: false } | OnDevice { dirty: false }, Event::Reclaim) => {
            Gone { lost: false }
        }
        (InRam { .. } | OnDevice { .. } | Gone { .. } | Poisoned, Event::Truncate) => {
            Gone { lost: false }
        }
        _ => return None,
    })
}

/// Why a folio must stay in system memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    /// The file system has not agreed, or works in blocks larger than a page.
    NotOptedIn,
    /// The inode is being evicted.
    Exiting,
    /// Swap would be read through it behind the page cache's back.
    Swapfile,
    /// Its memory is accounted per node in a way that does not follow a move.
    KernelFile,
    /// Its tail must read as zeroes, and file systems write the zeroes without a lookup.
    StraddlesEof,
    /// Its content is not there yet.
    NotUptodate,
    /// The block layer is reading it.
    Writeback,
    /// A network file system's cache is.
    Private2,
    /// The memory is broken.
    HwPoison,
    /// It is to be dropped after writeback, and the flag does not follow a move.
    Dropbehind,
    /// Somebody may do DMA to it.
    Pinned,
    /// Folios move one page at a time.
    Large,
}

/// What admission needs to know about a locked folio.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// Reasons against it, in the order in which they are reported, and whether each holds.
    pub(crate) against: [(bool, Refusal); 12],
    /// The page table entry at hand lets the CPU write, so a write fault has succeeded: blocks are
    /// allocated, quota is charged, and the file system is not frozen.
    pub(crate) pte_writable: bool,
    /// What stands behind the page.
    pub(crate) backing: Backing,
}

/// Decides whether a folio may move to a device, and on which terms.
///
/// The device may write only where the CPU could, by this page table entry or by another. It does
/// not report writes, so the folio becomes dirty now. With a backing store, any other writable entry
/// means that the folio is dirty already. Not so for shmem, whose entries may be writable while the
/// folio is clean, so its folios become dirty in any case.
pub(crate) fn admission(facts: &Facts) -> Result<Admission, Refusal> {
    for (holds, refusal) in facts.against {
        if holds {
            return Err(refusal);
        }
    }
    Ok(Admission {
        mark_dirty: facts.pte_writable || facts.backing == Backing::None,
    })
}
