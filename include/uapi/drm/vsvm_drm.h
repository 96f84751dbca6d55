/* SPDX-License-Identifier: ((GPL-2.0 WITH Linux-syscall-note) OR MIT) */
/*
 * uAPI of the vsvm driver: compute on ordinary pointers of the process.
 *
 * A program opens the render node, attaches its address space once
 * (DRM_IOCTL_VSVM_SVM_ATTACH) and from then on hands the GPU the same pointers
 * it uses itself. Where the pages are is a question of speed only: they may
 * be moved to VRAM ahead of use (DRM_IOCTL_VSVM_MIGRATE) and come back by
 * themselves when the CPU touches them.
 *
 * Rules for all structures:
 *
 * - sizes, lengths and addresses are in bytes unless said otherwise;
 * - members called pad or flags must be zero, else the ioctl fails with EINVAL;
 * - members are input, output, or both, as their description says; the driver
 *   ignores the value of an output member on entry;
 * - members may be added at the end, with zero meaning the old behaviour.
 *
 * Errors that any ioctl may return: EINVAL for a value that is not allowed,
 * ENODEV when the device has gone, ENXIO when the file has no address space
 * attached but the ioctl needs one.
 */
#ifndef _UAPI_VSVM_DRM_H_
#define _UAPI_VSVM_DRM_H_

#include "drm.h"

#if defined(__cplusplus)
extern "C" {
#endif

/**
 * enum drm_vsvm_param - what DRM_IOCTL_VSVM_GET_PARAM can be asked for
 */
enum drm_vsvm_param {
	/** @DRM_VSVM_PARAM_VERSION: Version of this interface: 1. */
	DRM_VSVM_PARAM_VERSION = 0,

	/**
	 * @DRM_VSVM_PARAM_VRAM_TOTAL: Bytes of VRAM that can hold pages of
	 * programs. VRAM the driver uses for page tables is not counted.
	 */
	DRM_VSVM_PARAM_VRAM_TOTAL = 1,

	/**
	 * @DRM_VSVM_PARAM_VRAM_FREE: Bytes of %DRM_VSVM_PARAM_VRAM_TOTAL that
	 * are free at this moment.
	 */
	DRM_VSVM_PARAM_VRAM_FREE = 2,

	/**
	 * @DRM_VSVM_PARAM_PAGE_SIZE: Bytes of a page: the granularity of
	 * DRM_IOCTL_VSVM_MIGRATE.
	 */
	DRM_VSVM_PARAM_PAGE_SIZE = 3,
};

/**
 * struct drm_vsvm_get_param - argument of DRM_IOCTL_VSVM_GET_PARAM
 *
 * Needs no attached address space. EINVAL: unknown parameter.
 */
struct drm_vsvm_get_param {
	/** @param: Input. One of &enum drm_vsvm_param. */
	__u32 param;

	/** @pad: Must be zero. */
	__u32 pad;

	/** @value: Output. The value of the parameter. */
	__u64 value;
};

/**
 * struct drm_vsvm_svm_attach - argument of DRM_IOCTL_VSVM_SVM_ATTACH
 *
 * Makes the address space of the calling process the GPU address space of this
 * open file. It stays attached until the file is closed or the process exits.
 *
 * EBUSY: this file has an address space attached already. ENOSPC: no VRAM is
 * left for its page table, or no channel for its jobs.
 */
struct drm_vsvm_svm_attach {
	/** @flags: Must be zero. */
	__u64 flags;

	/**
	 * @va_end: Output. End of the addresses the GPU can reach: the first
	 * address beyond.
	 */
	__u64 va_end;
};

/**
 * enum drm_vsvm_direction - where DRM_IOCTL_VSVM_MIGRATE moves pages
 */
enum drm_vsvm_direction {
	/** @DRM_VSVM_TO_VRAM: From system memory to VRAM. */
	DRM_VSVM_TO_VRAM = 0,

	/** @DRM_VSVM_TO_RAM: From VRAM to system memory. */
	DRM_VSVM_TO_RAM = 1,
};

/**
 * struct drm_vsvm_migrate - argument of DRM_IOCTL_VSVM_MIGRATE
 *
 * Moves the pages of a range. The call is advice about placement: a page that
 * cannot be moved now (pinned, under writeback, of a file system that does not
 * take part, VRAM is full) stays where it is and is counted in @skipped, and
 * the call succeeds. For every range the whole of which was visited,
 *
 *	@moved + @present + @skipped == @length / page size
 *
 * The range is checked before any page is moved. EINVAL: the range is empty,
 * not page aligned, or overflows; unknown direction. ENOMEM: part of the range
 * is not mapped, or lies beyond what the GPU can reach, or the kernel has no
 * memory. EACCES: part of the range is mapped without any access right
 * (PROT_NONE). EOPNOTSUPP: part of the range is of a kind that never moves:
 * hugetlbfs, DAX, device memory. EPERM: the caller is not the process that
 * attached. EINTR: a fatal signal arrived. EBUSY: the address space changed all
 * the time. EIO: the copy engine failed.
 *
 * The output members tell what had been done, also when an error is returned
 * after pages were moved.
 */
struct drm_vsvm_migrate {
	/** @start: Input. First address, page aligned. */
	__u64 start;

	/** @length: Input. Bytes, a multiple of the page size, not zero. */
	__u64 length;

	/** @direction: Input. One of &enum drm_vsvm_direction. */
	__u32 direction;

	/** @flags: Must be zero. */
	__u32 flags;

	/** @moved: Output. Pages this call moved. */
	__u64 moved;

	/**
	 * @present: Output. Pages that were where they should go before the
	 * call. An address nothing was ever stored at counts as being in system
	 * memory.
	 */
	__u64 present;

	/** @skipped: Output. Pages that could not be moved. */
	__u64 skipped;
};

/**
 * enum drm_vsvm_type - type of the elements of a computation
 *
 * Elements are little endian and four bytes long. The addresses of a
 * computation must be a multiple of four.
 */
enum drm_vsvm_type {
	/** @DRM_VSVM_TYPE_U32: Unsigned integers; arithmetic is modulo 2^32. */
	DRM_VSVM_TYPE_U32 = 0,

	/** @DRM_VSVM_TYPE_F32: IEEE 754 binary32. */
	DRM_VSVM_TYPE_F32 = 1,
};

/**
 * enum drm_vsvm_op - operations of the compute engine
 *
 * i runs over the elements in ascending order; s is the scalar. Source and
 * destination may be the same array; if they overlap in another way, the result
 * is undefined.
 */
enum drm_vsvm_op {
	/** @DRM_VSVM_OP_FILL: dst[i] = s */
	DRM_VSVM_OP_FILL = 0,

	/** @DRM_VSVM_OP_ADD: dst[i] = a[i] + s */
	DRM_VSVM_OP_ADD = 1,

	/** @DRM_VSVM_OP_SAXPY: dst[i] = s * a[i] + b[i] */
	DRM_VSVM_OP_SAXPY = 2,

	/** @DRM_VSVM_OP_COPY: dst[i] = a[i] */
	DRM_VSVM_OP_COPY = 3,

	/**
	 * @DRM_VSVM_OP_SUM: result = sum of a[i]: for u32 a 64-bit integer
	 * modulo 2^64, for f32 the bits of a binary64 summed up in order.
	 */
	DRM_VSVM_OP_SUM = 4,

	/**
	 * @DRM_VSVM_OP_CHECKSUM: result = FNV-1a, 64 bit, over the bytes of
	 * a[] in ascending order. Does not depend on the type.
	 */
	DRM_VSVM_OP_CHECKSUM = 5,
};

/**
 * enum drm_vsvm_exec_flags - flags of DRM_IOCTL_VSVM_EXEC
 */
enum drm_vsvm_exec_flags {
	/**
	 * @DRM_VSVM_EXEC_TO_VRAM: Pages that the GPU cannot reach when it gets
	 * to them are moved to VRAM, if they can be moved, and others make room
	 * for them if need be. Without it they are used where they are.
	 */
	DRM_VSVM_EXEC_TO_VRAM = 1 << 0,
};

/* How many syncobjs a job can wait for, and how many it can signal. */
#define DRM_VSVM_SYNCOBJS_MAX	64

/**
 * struct drm_vsvm_exec - argument of DRM_IOCTL_VSVM_EXEC
 *
 * Queues a computation on ordinary pointers of the process and returns at
 * once. Pages that the GPU cannot reach when it gets to them are made reachable
 * by the driver's fault handling. Jobs of one file are executed in the order in
 * which they were queued.
 *
 * A job may wait for syncobjs before it begins, and jobs behind it then wait
 * too. What it waits for are the fences that are in the syncobjs at the time of
 * the call. If one of them ends with an error, so does the job, without having
 * begun.
 *
 * The syncobjs that a job signals become empty when it is queued, and get a
 * fence when it has ended: one that is signalled, and has an error if the job
 * failed. A job that can fault must not have a fence before. So whoever waits
 * for it waits for the fence to appear, too
 * (%DRM_SYNCOBJ_WAIT_FLAGS_WAIT_FOR_SUBMIT), and until then the syncobj cannot
 * be given to anybody who needs a fence: not to another job, and not to
 * DRM_IOCTL_SYNCOBJ_HANDLE_TO_FD for a sync file. Who gives a syncobj to two
 * jobs at a time is told of the end of either.
 *
 * Only the binary form of syncobjs is supported. If the call fails no syncobj
 * has changed.
 *
 * EINVAL: unknown operation or type, a count of zero, a misaligned address, an
 * array beyond what the GPU can reach, an address or scalar the operation does
 * not use that is not zero; too many syncobjs, an address of none; a syncobj to
 * wait for is empty. ENOENT: a syncobj does not exist. EFAULT: a list of
 * syncobjs cannot be read. EBUSY: too many jobs are pending; wait for one.
 * EPERM: the caller is not the process that attached. EIO: the compute engine
 * is in error.
 */
struct drm_vsvm_exec {
	/** @op: Input. One of &enum drm_vsvm_op. */
	__u32 op;

	/** @type: Input. One of &enum drm_vsvm_type. */
	__u32 type;

	/** @dst: Input. Address of the destination; zero if @op has none. */
	__u64 dst;

	/** @src_a: Input. Address of a; zero if @op has none. */
	__u64 src_a;

	/** @src_b: Input. Address of b; zero if @op has none. */
	__u64 src_b;

	/** @count: Input. Number of elements, not zero. */
	__u64 count;

	/** @scalar: Input. Bits of s; zero if @op has none. */
	__u32 scalar;

	/** @flags: Input. Of &enum drm_vsvm_exec_flags. */
	__u32 flags;

	/**
	 * @wait_syncobjs: Input. Address of the handles, each a __u32, of the
	 * syncobjs to wait for; zero if there are none.
	 */
	__u64 wait_syncobjs;

	/**
	 * @signal_syncobjs: Input. Address of the handles, each a __u32, of the
	 * syncobjs to signal; zero if there are none.
	 */
	__u64 signal_syncobjs;

	/**
	 * @wait_count: Input. How many syncobjs to wait for, up to
	 * %DRM_VSVM_SYNCOBJS_MAX.
	 */
	__u32 wait_count;

	/**
	 * @signal_count: Input. How many syncobjs to signal, up to
	 * %DRM_VSVM_SYNCOBJS_MAX.
	 */
	__u32 signal_count;

	/** @job: Output. Names the job in DRM_IOCTL_VSVM_WAIT; never zero. */
	__u64 job;
};

/**
 * struct drm_vsvm_wait - argument of DRM_IOCTL_VSVM_WAIT
 *
 * Waits until a job is done and tells how it ended. The answer to the first
 * wait that sees the end of the job releases it: a second one gets ENOENT.
 *
 * The ioctl returns 0 when the job has ended, also when it failed: look at
 * @status. ENOENT: this file has no such job. ETIME: the job has not ended
 * within the time. EINTR or restart: a signal arrived; @timeout_ns being
 * absolute, the call can simply be made again.
 */
struct drm_vsvm_wait {
	/** @job: Input. Number from DRM_IOCTL_VSVM_EXEC. */
	__u64 job;

	/**
	 * @timeout_ns: Input. Absolute time of CLOCK_MONOTONIC in nanoseconds
	 * at which to stop waiting. A time in the past, such as 0, makes the
	 * call a poll.
	 */
	__s64 timeout_ns;

	/**
	 * @status: Output. How the job ended: 0 or a negative errno.
	 * EFAULT: the GPU used an address that is not mapped or not mapped for
	 * that access (@fault_addr). ENOMEM, EIO and others: the page at
	 * @fault_addr could not be made reachable, for that reason. ECANCELED:
	 * the job was cancelled since the device is going away. EIO with
	 * @fault_addr zero: the compute engine failed, or the job ran for
	 * seconds without end. ENODEV: the device has vanished. Any error of a
	 * fence that the job waited for, with @fault_addr zero.
	 */
	__s32 status;

	/** @pad: Must be zero. */
	__u32 pad;

	/** @result: Output. Result of the operation; zero if it has none. */
	__u64 result;

	/** @fault_addr: Output. Address at which the job failed, or zero. */
	__u64 fault_addr;
};

#define DRM_VSVM_GET_PARAM	0x00
#define DRM_VSVM_SVM_ATTACH	0x01
#define DRM_VSVM_MIGRATE	0x02
#define DRM_VSVM_EXEC		0x03
#define DRM_VSVM_WAIT		0x04

/* Note: this is an enum so that it can be resolved by Rust bindgen. */
enum {
	DRM_IOCTL_VSVM_GET_PARAM	= DRM_IOWR(DRM_COMMAND_BASE + DRM_VSVM_GET_PARAM,
						   struct drm_vsvm_get_param),
	DRM_IOCTL_VSVM_SVM_ATTACH	= DRM_IOWR(DRM_COMMAND_BASE + DRM_VSVM_SVM_ATTACH,
						   struct drm_vsvm_svm_attach),
	DRM_IOCTL_VSVM_MIGRATE		= DRM_IOWR(DRM_COMMAND_BASE + DRM_VSVM_MIGRATE,
						   struct drm_vsvm_migrate),
	DRM_IOCTL_VSVM_EXEC		= DRM_IOWR(DRM_COMMAND_BASE + DRM_VSVM_EXEC,
						   struct drm_vsvm_exec),
	DRM_IOCTL_VSVM_WAIT		= DRM_IOWR(DRM_COMMAND_BASE + DRM_VSVM_WAIT,
						   struct drm_vsvm_wait),
};

#if defined(__cplusplus)
}
#endif

#endif /* _UAPI_VSVM_DRM_H_ */
