// SPDX-License-Identifier: GPL-2.0

//! Fences: those that a job waits for, and the one that tells of its end.
//!
//! To serve a fault of a job takes memory, and whoever provides the page. Whoever waits for a DMA
//! fence may do so in the middle of reclaim, or hold what serving the fault needs. So there must
//! never be a fence that waits for a job; see "Recoverable Hardware Page Faults Implications" in
//! `Documentation/driver-api/dma-buf.rst`.
//!
//! Telling of an end that has come is no promise. The syncobjs of a job are empty while it is
//! pending, and get a fence that is signalled when it has ended. So nobody who needs a fence gets
//! at one too early: neither other drivers, nor sync files, nor other jobs. Only programs can wait
//! for a fence to appear, and they do so without locks of the kernel, and can be killed.
//!
//! The other way round there is no danger: fences of others end by themselves, without any job.
//! They are waited for by nobody but the follower of the channel ([`super::follow`]), which holds
//! no locks meanwhile: no lock that somebody needs to signal a fence is ever held by somebody who
//! waits for one.

use kernel::{
    dma_fence::{
        Fence,
        UnpublishedFence, //
    },
    drm::SyncObj,
    num::casts::arch::IntoSafeCastArch,
    prelude::*,
    sync::aref::ARef,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

use core::ops::Range;

use crate::file::VsvmFile;

/// What a job waits for, and what it signals.
pub(crate) struct Fences {
    pub(crate) waits: KVec<ARef<Fence>>,
    pub(crate) signal: Option<Signal>,
}

impl Fences {
    /// Finds what a program has listed: the handles of syncobjs to wait for are at the addresses
    /// `waits`, of those to signal at `signals`.
    ///
    /// # Errors
    ///
    /// - `EFAULT`: a list cannot be read.
    /// - `ENOENT`: a syncobj does not exist.
    /// - `EINVAL`: a syncobj to wait for is empty.
    pub(crate) fn find(file: &VsvmFile, waits: Range<u64>, signals: Range<u64>) -> Result<Self> {
        let mut fences = KVec::new();
        for handle in read(waits)? {
            fences.push(SyncObj::find_fence(file, handle)?, GFP_KERNEL)?;
        }
        let mut syncobjs = KVec::new();
        for handle in read(signals)? {
            syncobjs.push(SyncObj::find(file, handle)?, GFP_KERNEL)?;
        }
        Ok(Self {
            waits: fences,
            signal: Signal::new(syncobjs)?,
        })
    }

    /// Returns whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.waits.is_empty() && self.signal.is_none()
    }
}

/// Reads handles from memory of the program.
fn read(list: Range<u64>) -> Result<KVec<u32>> {
    let length: usize = (list.end - list.start).into_safe_cast_arch();
    let start = UserPtr::from_addr(list.start.into_safe_cast_arch());
    let mut reader = UserSlice::new(start, length).reader();
    let mut handles = KVec::with_capacity(length / size_of::<u32>(), GFP_KERNEL)?;
    while !reader.is_empty() {
        handles.push(reader.read()?, GFP_KERNEL)?;
    }
    Ok(handles)
}

/// What tells of the end of a job.
pub(crate) struct Signal {
    fence: UnpublishedFence,
    syncobjs: KVec<ARef<SyncObj>>,
}

impl Signal {
    /// Allocates what is needed later; `None` if there is nobody to tell.
    fn new(syncobjs: KVec<ARef<SyncObj>>) -> Result<Option<Self>> {
        if syncobjs.is_empty() {
            return Ok(None);
        }
        let fence = UnpublishedFence::new()?;
        Ok(Some(Self { fence, syncobjs }))
    }

    /// Makes the syncobjs empty, as the job is pending now.
    pub(crate) fn reset(&self) {
        for syncobj in &self.syncobjs {
            syncobj.replace_fence(None);
        }
    }

    /// Tells that the job has ended.
    pub(crate) fn send(self, status: Result) {
        let fence = self.fence.signal(status);
        for syncobj in &self.syncobjs {
            syncobj.replace_fence(Some(&fence));
        }
    }
}
