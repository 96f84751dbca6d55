// SPDX-License-Identifier: GPL-2.0

//! The address spaces of a device.

use kernel::{
    mm::MmWithUser,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    }, //
};

use crate::svm::{
    Svm,
    Units, //
};

/// The address spaces of a device.
#[pin_data]
pub(crate) struct SvmTable<'bound> {
    #[pin]
    list: Mutex<List<'bound>>,
}

struct List<'bound> {
    next_id: u64,
    spaces: KVec<Arc<Svm<'bound>>>,
    /// Their channels are paused.
    paused: bool,
    /// The device goes away: there are no new ones.
    closed: bool,
}

impl<'bound> SvmTable<'bound> {
    /// Creates a table without address spaces.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let list = List {
            next_id: 1,
            spaces: KVec::new(),
            paused: false,
            closed: false,
        };
        Arc::pin_init(
            pin_init!(Self {
                list <- new_mutex!(list, "SvmTable::list"),
            }),
            GFP_KERNEL,
        )
    }

    /// Creates an address space for the process that has `mm` and returns its number.
    ///
    /// # Errors
    ///
    /// - `ENOSPC`: no VRAM is left for its page table, or no channel for its jobs.
    /// - `ENODEV`: the device goes away.
    /// - `ENOMEM`, `EINTR` as said.
    pub(crate) fn create(&self, mm: &MmWithUser, units: Units<'bound>) -> Result<u64> {
        let id = {
            let mut list = self.list.lock();
            list.next_id += 1;
            list.next_id - 1
        };
        let svm = Svm::new(id, mm, units)?;
        let mut list = self.list.lock();
        if list.closed {
            return Err(ENODEV);
        }
        list.spaces.push(svm.clone(), GFP_KERNEL)?;
        if !list.paused {
            svm.channel.resume();
        }
        Ok(id)
    }

    /// Returns the address space with a number.
    pub(crate) fn by_id(&self, id: u64) -> Option<Arc<Svm<'bound>>> {
        let list = self.list.lock();
        list.spaces.iter().find(|svm| svm.id() == id).cloned()
    }

    /// Returns the address space with a root page table.
    pub(crate) fn by_root(&self, root: u64) -> Option<Arc<Svm<'bound>>> {
        let list = self.list.lock();
        list.spaces.iter().find(|svm| svm.root() == root).cloned()
    }

    /// Returns all address spaces.
    pub(crate) fn all(&self) -> Result<KVec<Arc<Svm<'bound>>>> {
        let list = self.list.lock();
        let mut all = KVec::with_capacity(list.spaces.len(), GFP_KERNEL)?;
        for svm in &list.spaces {
            all.push(svm.clone(), GFP_KERNEL)?;
        }
        Ok(all)
    }

    /// Removes an address space; the GPU no longer uses it when the function returns.
    pub(crate) fn destroy(&self, id: u64) {
        let Some(svm) = self.by_id(id) else {
            return;
        };
        // Before it leaves the list, where a reset looks for engines to stop and tables to clear.
        svm.shut_down();
        self.list.lock().spaces.retain(|svm| svm.id() != id);
    }

    /// Takes all address spaces away from the GPU, and lets no new ones in.
    pub(crate) fn close_all(&self) {
        let mut list = self.list.lock();
        list.closed = true;
        for svm in &list.spaces {
            svm.shut_down();
        }
    }

    /// Pauses all channels, also those of address spaces that are created later.
    pub(crate) fn pause(&self) {
        let mut list = self.list.lock();
        list.paused = true;
        for svm in &list.spaces {
            svm.channel.pause();
        }
    }

    /// Has all address spaces [forget](Svm::forget) what they map. Returns whether all did so.
    pub(crate) fn forget(&self) -> bool {
        let list = self.list.lock();
        list.spaces
            .iter()
            .fold(true, |all, svm| svm.forget() && all)
    }

    /// Starts all channels.
    pub(crate) fn resume(&self) {
        let mut list = self.list.lock();
        list.paused = false;
        for svm in &list.spaces {
            svm.channel.resume();
        }
    }
}
