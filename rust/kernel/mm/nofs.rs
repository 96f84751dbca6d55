// SPDX-License-Identifier: GPL-2.0

//! A scope in which allocations do not enter file systems.
//!
//! C header: [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h)

use crate::{
    bindings,
    prelude::*,
    types::NotThreadSafe, //
};

/// Makes every allocation of the current task `GFP_NOFS` until it is dropped.
///
/// Scopes may be nested; they must end in the reverse order of their beginning.
pub(super) struct NofsScope {
    flags: c_uint,
    // The scope is a flag of the current task.
    _not_send: NotThreadSafe,
}

impl NofsScope {
    /// Begins a scope.
    #[inline]
    pub(super) fn enter() -> Self {
        Self {
            // SAFETY: It is always safe to call this function.
            flags: unsafe { bindings::memalloc_nofs_save() },
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for NofsScope {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: `flags` is what `memalloc_nofs_save()` returned, on this task.
        unsafe { bindings::memalloc_nofs_restore(self.flags) };
    }
}
