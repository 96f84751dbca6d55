// SPDX-License-Identifier: GPL-2.0
//! With which errnos an operation may fail while something is wrong: pure, and the whole of it.
//!
//! ====================  =====================================================================
//! wrong                 may say
//! ====================  =====================================================================
//! pages were lost       on a disk: ``fsync()`` EIO, once; so do operations that write back before
//!                       they do something else. On tmpfs: EIO, or EFAULT through a mapping.
//! copies fail           the GPU EIO: for what is in VRAM, its page tables too
//! the GPU is gone       the GPU EIO or ENODEV
//! the disk has errors   everything EIO, or EFAULT through a mapping; what writes or maps EROFS; what
//!                       writes ENOSPC
//! no space              what writes ENOSPC, or EFAULT through a mapping
//! an allocation failed  everything ENOMEM, or EFAULT through a mapping; io_uring ECANCELED
//! ====================  =====================================================================

use crate::step::Look;
use crate::step::Op;
use nix::errno::Errno;

/// What kind of operation it is, as far as errors are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// read(2) and the like.
    Read,
    /// The same by io_uring, which may need a thread for it.
    Ring,
    /// write(2).
    Write,
    /// Writes what is dirty before it does something else.
    Flush { writes: bool },
    /// Tells of errors of writeback: fsync(2), msync(2).
    Sync,
    /// Loads and stores through a mapping.
    Map,
    /// The GPU, which has a mapping too.
    Gpu,
    /// The other device, which has one too.
    Mirror,
    /// Nothing that takes part.
    Other,
}

impl Kind {
    /// That of an operation.
    pub(crate) fn of(op: &Op) -> Self {
        match op {
            Op::Read(_) => Kind::Read,
            Op::RingRead(_) => Kind::Ring,
            Op::Write { .. } => Kind::Write,
            Op::DirectRead(_) => Kind::Flush { writes: false },
            Op::DirectWrite { .. }
            | Op::Truncate(_)
            | Op::Punch(_)
            | Op::Zero(_)
            | Op::Preallocate(_)
            | Op::Compress(_)
            | Op::Collapse(_)
            | Op::Insert(_) => Kind::Flush { writes: true },
            Op::Fsync | Op::Msync => Kind::Sync,
            Op::MapRead(_) | Op::MapWrite { .. } | Op::ForkWrite { .. } => Kind::Map,
            Op::PrivateWrite { gpu: false, .. } => Kind::Map,
            Op::PrivateWrite { gpu: true, .. }
            | Op::PrivateFork { .. }
            | Op::Send { .. }
            | Op::SendReadOnly(_)
            | Op::Recall(_)
            | Op::GpuFill { .. }
            | Op::GpuAdd { .. }
            | Op::GpuCopy { .. }
            | Op::GpuRead(_) => Kind::Gpu,
            Op::MirrorSend(_)
            | Op::MirrorRecall(_)
            | Op::MirrorRead(_)
            | Op::MirrorWrite { .. } => Kind::Mirror,
            Op::DropCaches
            | Op::Shrink
            | Op::Forget(_)
            | Op::Reclaim(_)
            | Op::PageOut(_)
            | Op::Remount
            | Op::Fault(_) => Kind::Other,
        }
    }

    /// That of a look.
    pub(crate) fn of_look(look: Look) -> Self {
        match look {
            Look::Size => Kind::Other,
            Look::Gpu => Kind::Gpu,
            Look::Read => Kind::Read,
            Look::Map => Kind::Map,
        }
    }

    /// Whether allocations may be made to fail. File systems on a disk take it for an error of their own
    /// if one does while they change how a file lies there: they note it on the disk, stop writing, or
    /// have lost what they were writing.
    pub(crate) fn may_starve(self, on_disk: bool) -> bool {
        match self {
            Kind::Other => false,
            Kind::Write | Kind::Flush { .. } | Kind::Sync => !on_disk,
            _ => true,
        }
    }

    fn maps(self) -> bool {
        matches!(self, Kind::Map | Kind::Gpu | Kind::Mirror)
    }

    fn writes(self) -> bool {
        matches!(self, Kind::Write | Kind::Flush { writes: true })
    }
}

/// Whether fsync(2) has to tell of a loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Owed {
    /// No.
    #[default]
    Nothing,
    /// If what was lost was dirty, which cannot be seen.
    Perhaps,
    /// Yes: something is older now.
    Error,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Trouble {
    /// The file is on a disk.
    pub(crate) on_disk: bool,
    /// Pages were lost while this was done.
    pub(crate) lost: bool,
    /// See there.
    pub(crate) owed: Owed,
    /// Of what was lost, what writes back was not told yet.
    pub(crate) flagged: bool,
    /// Copies by the GPU fail, or store what cannot be read.
    pub(crate) bad_copies: bool,
    /// There is no GPU.
    pub(crate) gone: bool,
    /// The disk has errors, or had since the file system was mounted.
    pub(crate) bad_disk: bool,
    /// fsync(2) has told of it.
    pub(crate) told: bool,
    /// Pages were lost since the file system was mounted, so its disk may have a smaller size.
    pub(crate) cut: bool,
    /// There is no space.
    pub(crate) full: bool,
    /// An allocation failed while this was done.
    pub(crate) starved: bool,
}

impl Trouble {
    /// All errnos that an operation may fail with.
    pub(crate) fn errnos(&self, kind: Kind) -> Vec<Errno> {
        let rules = [
            (
                self.lost
                    && !self.on_disk
                    && matches!(
                        kind,
                        Kind::Read | Kind::Ring | Kind::Write | Kind::Flush { .. }
                    ),
                Errno::EIO,
            ),
            (self.lost && !self.on_disk && kind.maps(), Errno::EFAULT),
            (
                self.on_disk && kind == Kind::Sync && (self.lost || self.owed != Owed::Nothing),
                Errno::EIO,
            ),
            (
                self.on_disk && matches!(kind, Kind::Flush { .. }) && (self.lost || self.flagged),
                Errno::EIO,
            ),
            (self.bad_copies && kind == Kind::Gpu, Errno::EIO),
            (self.gone && kind == Kind::Gpu, Errno::EIO),
            (self.gone && kind == Kind::Gpu, Errno::ENODEV),
            (self.bad_disk, Errno::EIO),
            // What cannot be read is not known to be free.
            (
                self.bad_disk && (kind.writes() || kind == Kind::Sync),
                Errno::ENOSPC,
            ),
            (self.bad_disk && kind.maps(), Errno::EFAULT),
            (
                self.bad_disk && !matches!(kind, Kind::Read | Kind::Ring | Kind::Other),
                Errno::EROFS,
            ),
            (self.full && kind.writes(), Errno::ENOSPC),
            (self.full && kind.maps(), Errno::EFAULT),
            (self.starved, Errno::ENOMEM),
            (self.starved && kind.maps(), Errno::EFAULT),
            (self.starved && kind == Kind::Ring, Errno::ECANCELED),
        ];
        let hold = rules.into_iter().filter(|(holds, _)| *holds);
        hold.map(|(_, errno)| errno).collect()
    }

    /// The file system was mounted again: it has no more to tell.
    pub(crate) fn mounted(&mut self) {
        self.owed = Owed::Nothing;
        self.flagged = false;
        self.bad_disk = false;
        self.told = false;
        self.cut = false;
    }

    /// Whether an operation that succeeded should have failed.
    pub(crate) fn must_fail(&self, kind: Kind) -> bool {
        self.on_disk && kind == Kind::Sync && self.owed == Owed::Error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Trouble = Trouble {
        on_disk: true,
        lost: false,
        owed: Owed::Nothing,
        flagged: false,
        bad_copies: false,
        gone: false,
        bad_disk: false,
        told: false,
        cut: false,
        full: false,
        starved: false,
    };

    const KINDS: [Kind; 10] = [
        Kind::Read,
        Kind::Ring,
        Kind::Write,
        Kind::Flush { writes: false },
        Kind::Flush { writes: true },
        Kind::Sync,
        Kind::Map,
        Kind::Gpu,
        Kind::Mirror,
        Kind::Other,
    ];

    #[test]
    fn nothing_fails_while_nothing_is_wrong() {
        for kind in KINDS {
            assert!(DISK.errnos(kind).is_empty() && !DISK.must_fail(kind));
        }
    }

    #[test]
    fn a_disk_has_something_to_read() {
        let trouble = Trouble { lost: true, ..DISK };
        for kind in [Kind::Read, Kind::Write, Kind::Map, Kind::Gpu, Kind::Mirror] {
            assert!(trouble.errnos(kind).is_empty(), "{kind:?}");
        }
        assert_eq!(trouble.errnos(Kind::Sync), [Errno::EIO]);
        assert!(!trouble.must_fail(Kind::Sync));
    }

    #[test]
    fn a_bad_disk_is_met_by_all() {
        let trouble = Trouble {
            bad_disk: true,
            ..DISK
        };
        assert_eq!(trouble.errnos(Kind::Read), [Errno::EIO]);
        let write = [Errno::EIO, Errno::ENOSPC, Errno::EROFS];
        assert_eq!(trouble.errnos(Kind::Write), write);
        let mut again = trouble;
        again.mounted();
        assert!(KINDS.iter().all(|&kind| again.errnos(kind).is_empty()));
    }

    #[test]
    fn what_is_owed_must_be_told() {
        let owed = Owed::Error;
        let trouble = Trouble { owed, ..DISK };
        assert!(trouble.must_fail(Kind::Sync) && !trouble.must_fail(Kind::Read));
        let owed = Owed::Perhaps;
        let trouble = Trouble { owed, ..DISK };
        assert!(!trouble.must_fail(Kind::Sync));
        assert_eq!(trouble.errnos(Kind::Sync), [Errno::EIO]);
    }

    #[test]
    fn tmpfs_has_no_other_copy() {
        let trouble = Trouble {
            on_disk: false,
            lost: true,
            ..DISK
        };
        assert_eq!(trouble.errnos(Kind::Read), [Errno::EIO]);
        assert_eq!(trouble.errnos(Kind::Map), [Errno::EFAULT]);
        assert!(trouble.errnos(Kind::Sync).is_empty());
    }

    #[test]
    fn disks_are_not_starved_while_they_write() {
        assert!(Kind::Read.may_starve(true) && Kind::Map.may_starve(true));
        assert!(!Kind::Write.may_starve(true) && Kind::Write.may_starve(false));
        let flush = Kind::Flush { writes: false };
        assert!(!flush.may_starve(true) && flush.may_starve(false));
    }

    #[test]
    fn a_ring_may_get_no_thread() {
        let trouble = Trouble {
            starved: true,
            ..DISK
        };
        assert_eq!(trouble.errnos(Kind::Read), [Errno::ENOMEM]);
        let ring = [Errno::ENOMEM, Errno::ECANCELED];
        assert_eq!(trouble.errnos(Kind::Ring), ring);
    }

    #[test]
    fn no_space_does_not_keep_from_reading() {
        let trouble = Trouble { full: true, ..DISK };
        assert!(trouble.errnos(Kind::Read).is_empty());
        assert_eq!(trouble.errnos(Kind::Write), [Errno::ENOSPC]);
        assert_eq!(trouble.errnos(Kind::Gpu), [Errno::EFAULT]);
    }
}
