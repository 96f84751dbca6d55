// SPDX-License-Identifier: GPL-2.0

//! Driver for the vsvm virtual GPU.
//!
//! vsvm exists only as a model attached to a virtual machine. It has what matters for shared
//! virtual memory on real GPUs, and this driver is built like theirs:
//!
//! | file | what |
//! |---|---|
//! | `driver` | probing, and what is taken down in which order |
//! | `power` | resets of the function, and sleep |
//! | `file`, `range`, `request` | ioctls, and checks of their arguments |
//! | `regs`, `channel`, `hw` | registers, rings, the hardware interface |
//! | `copy` | the copy engine, which never faults and that memory management may wait for |
//! | `job`, `queue`, `compute` | jobs of programs, and the channels that execute them |
//! | `syncobj`, `follow` | fences of jobs, and who looks after jobs that have some |
//! | `vram`, `dmem` | free VRAM; VRAM as memory for pages of programs and files |
//! | `mmu`, `page_table` | page tables of the GPU, TLB |
//! | `svm`, `spaces` | the address space of a process on the GPU, and all of them |
//! | `reach` | how pages become reachable for the GPU when it faults |
//! | `fault` | the fault buffer |
//! | `migrate` | moving pages on behalf of a program |
//!
//! The order of locks is in `svm`. Documentation is in `Documentation/gpu/vsvm.rst`.

mod channel;
mod compute;
mod copy;
mod dmem;
mod driver;
mod fault;
mod file;
mod follow;
mod hw;
mod job;
mod migrate;
mod mmu;
mod page_table;
mod power;
mod queue;
mod range;
mod reach;
mod regs;
mod request;
mod spaces;
mod stats;
mod svm;
mod syncobj;
mod vram;

kernel::module_pci_driver! {
    type: driver::VsvmDriver,
    name: "vsvm",
    authors: ["The devcache authors"],
    description: "Virtual GPU with shared virtual memory",
    license: "GPL",
}
