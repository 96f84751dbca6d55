// SPDX-License-Identifier: GPL-2.0

//! Charging memory to the memory cgroup of a process.
//!
//! C header: [`include/linux/memcontrol.h`](srctree/include/linux/memcontrol.h)

use super::Mm;
use crate::bindings;

impl Mm {
    /// Calls `f` with the memory that it allocates charged to the memory cgroup of this address space.
    ///
    /// For a kernel thread that works on behalf of a process. What is charged to a cgroup anyway, as
    /// anonymous memory is, needs no such help; the page cache is charged to the current task, which
    /// in a kernel thread means to nobody.
    pub fn charge<R>(&self, f: impl FnOnce() -> R) -> R {
        // SAFETY: `self.as_raw()` is a valid address space.
        let memcg = unsafe { bindings::get_mem_cgroup_from_mm(self.as_raw()) };
        // SAFETY: The reference to the cgroup is held until the old one is active again.
        let old = unsafe { bindings::set_active_memcg(memcg) };
        let result = f();
        // SAFETY: This was the active cgroup before, so there is a reference to it.
        unsafe { bindings::set_active_memcg(old) };
        // SAFETY: The reference was taken above.
        unsafe { bindings::mem_cgroup_put(memcg) };
        result
    }
}
