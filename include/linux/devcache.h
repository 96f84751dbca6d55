/* SPDX-License-Identifier: GPL-2.0 */
/*
 * devcache: page cache folios in device-private memory.
 *
 * Hooks in mm and the file systems call the first group of functions, device
 * drivers the second.  The model, the lock rules and the reasons are in
 * mm/devcache/devcache_main.rs and Documentation/mm/devcache.rst.
 */
#ifndef _LINUX_DEVCACHE_H
#define _LINUX_DEVCACHE_H

#include <linux/jump_label.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/pagemap.h>

struct folio_batch;

/**
 * enum devcache_rule - rules that tests can break
 * @DEVCACHE_RULE_ANY_REFS: a device folio comes back whatever references it has
 * @DEVCACHE_RULE_CLEAN_FLAGS: a device page starts without flags of its last use
 * @DEVCACHE_RULE_INVALIDATE: invalidation looks up again what was on a device
 * @DEVCACHE_RULE_DIRTY_SHMEM: shmem folios are dirty on a device
 * @DEVCACHE_RULE_SHRINK: the shrinker works
 * @DEVCACHE_NR_RULES: how many there are
 */
enum devcache_rule {
	DEVCACHE_RULE_ANY_REFS,
	DEVCACHE_RULE_CLEAN_FLAGS,
	DEVCACHE_RULE_INVALIDATE,
	DEVCACHE_RULE_DIRTY_SHMEM,
	DEVCACHE_RULE_SHRINK,
	DEVCACHE_NR_RULES,
};

#ifdef CONFIG_DEVCACHE_BREAK_RULES
extern bool devcache_rules_broken[DEVCACHE_NR_RULES];

/**
 * devcache_rule_broken() - does a test want this rule to be broken?
 * @rule: the rule
 */
static inline bool devcache_rule_broken(enum devcache_rule rule)
{
	return READ_ONCE(devcache_rules_broken[rule]);
}
#else
static inline bool devcache_rule_broken(enum devcache_rule rule)
{
	return false;
}
#endif

/**
 * struct devcache_copy - one folio on its way back from device memory
 * @dst: system folio of the same order, locked, not yet visible to anybody
 * @src: device-private folio, locked and mapped nowhere
 * @error: result, set by &dev_pagemap_ops.copy_to_ram: 0 when @dst holds the
 *	content of @src, else a negative errno
 */
struct devcache_copy {
	struct folio *dst;
	struct folio *src;
	int error;
};

#ifdef CONFIG_DEVCACHE

DECLARE_STATIC_KEY_FALSE(devcache_key);

/**
 * devcache_enabled() - can a device folio be in any page cache?
 *
 * Return: false, at the cost of a no-op instruction, until a device has
 * registered with devcache_register().
 */
static inline bool devcache_enabled(void)
{
	return static_branch_unlikely(&devcache_key);
}

/**
 * devcache_resident() - is this page cache entry in device memory?
 * @folio: a folio found in a page cache; value entries are not allowed
 *
 * Context: any.
 * Return: true when the CPU must not touch the content of @folio.
 */
static inline bool devcache_resident(const struct folio *folio)
{
	return devcache_enabled() && folio_is_device_private(folio);
}

/**
 * devcache_file_folio() - is this a file's folio in device memory?
 * @folio: a folio with a stable identity: locked, or mapped under the page
 *	table lock
 *
 * Unlike devcache_resident() this may be asked of anonymous folios too.
 */
static inline bool devcache_file_folio(const struct folio *folio)
{
	return devcache_resident(folio) && folio->mapping &&
	       !folio_test_anon(folio);
}

/**
 * devcache_may_wait() - annotate a lookup for content
 * @mapping: mapping that is looked into
 * @nowait: the caller must not sleep
 *
 * Makes CONFIG_DEBUG_ATOMIC_SLEEP complain where a device folio would be waited
 * for, if there was one.
 */
static inline void devcache_may_wait(struct address_space *mapping, bool nowait)
{
	if (devcache_enabled() && !nowait && mapping_devcache(mapping))
		might_sleep();
}

/**
 * devcache_back() - bring a device folio back to system memory
 * @mapping: mapping that @folio was found in
 * @index: page index that it was found at
 * @folio: what was found, for which devcache_resident() is true; the caller's
 *	reference is consumed
 * @nowait: the caller must not sleep
 *
 * Never fails for callers that can wait. If the device has lost the content,
 * the folio is dropped and the error recorded in @mapping.
 *
 * Context: may sleep unless @nowait. Folio locks of @mapping that the caller
 * holds must be at lower indexes. No RCU read side, page table lock, i_pages
 * lock or i_mmap_rwsem.
 * Return: the folio that is at @index now, with a reference that keeps it in
 * system memory; NULL if there is none, so that the caller looks up again;
 * ERR_PTR(-EAGAIN) if that would have to wait.
 */
struct folio *devcache_back(struct address_space *mapping, pgoff_t index,
			    struct folio *folio, bool nowait);

/**
 * devcache_back_batch() - bring the device folios of a batch back
 * @mapping: mapping that the folios were found in
 * @fbatch: folios in ascending order; each device folio is replaced by the
 *	folio that has taken its place, or removed if there is none
 *
 * Context: as for devcache_back() without nowait.
 * Return: true if the batch is not empty.
 */
bool devcache_back_batch(struct address_space *mapping,
			 struct folio_batch *fbatch);

/**
 * devcache_may_admit() - could this file's folios move to a device at all?
 * @folio: a file's folio, of any size, mapped by a page table
 *
 * Context: the page table lock is held.
 */
bool devcache_may_admit(struct folio *folio);

/**
 * devcache_admit() - decide whether a file's folio may move to a device
 * @folio: a locked folio, mapped by a page table
 * @write: the page table entry is writable, and so will be the device's
 *
 * Marks @folio dirty if its content may change on the device.
 *
 * Context: the page table lock is held.
 */
bool devcache_admit(struct folio *folio, bool write);

/**
 * devcache_prepare() - make the folios of a range ready to move
 * @mapping: the page cache of an open file
 * @first: first page index
 * @end: page index after the last
 *
 * Drains the per-CPU LRU batches and splits large folios. A large folio that is
 * dirty is written to disk first, since its private data cannot be divided. Page
 * table entries of folios that are split are gone: fault the range in before it
 * is migrated. A folio that is in use stays large.
 *
 * Context: may sleep and write to disk; no mmap_lock, no folio locks.
 * Return: 0, -EOPNOTSUPP if the folios of this file never move, -EINTR on a
 * fatal signal.
 */
int devcache_prepare(struct address_space *mapping, pgoff_t first, pgoff_t end);

/**
 * devcache_move_out() - put a device folio in the page cache
 * @dst: locked folio of a registered device, not in use yet
 * @src: locked, unmapped and isolated folio that was admitted
 *
 * Context: may not wait for writeback or buffers, and does not.
 * Return: 0, or -EAGAIN if @src is in use, -EBUSY if the device does not take
 * folios now, -EOPNOTSUPP if it never does.
 */
int devcache_move_out(struct folio *dst, struct folio *src);

/**
 * devcache_register() - let page cache folios move to a device
 * @pgmap: mapped device-private memory whose ops have copy_to_ram
 *
 * Context: may sleep.
 * Return: 0, or -EINVAL if @pgmap is not such memory or is registered already;
 * -ENOMEM; -EOPNOTSUPP without CONFIG_DEVCACHE.
 */
int devcache_register(struct dev_pagemap *pgmap);

/**
 * devcache_unregister() - bring all page cache folios back from a device
 * @pgmap: memory that devcache_register() accepted
 *
 * No folio moves in from the moment this is called, and none is left when it
 * returns. The copy channel must work until then; a device that is lost must
 * make copy_to_ram report errors.
 *
 * Context: may sleep; no lock that copy_to_ram or an mmu notifier takes.
 */
void devcache_unregister(struct dev_pagemap *pgmap);

/**
 * devcache_evict() - bring page cache folios back from a range of device memory
 * @pfn: first page frame number, of memory that devcache_register() accepted
 * @nr: number of pages
 *
 * For a driver that needs the memory for something else. Anonymous memory is
 * not touched, and file folios that move in meanwhile may be left.
 *
 * Context: may sleep; no lock that copy_to_ram or an mmu notifier takes.
 */
void devcache_evict(unsigned long pfn, unsigned long nr);

#else /* !CONFIG_DEVCACHE */

static inline bool devcache_enabled(void)
{
	return false;
}

static inline bool devcache_resident(const struct folio *folio)
{
	return false;
}

static inline bool devcache_file_folio(const struct folio *folio)
{
	return false;
}

static inline void devcache_may_wait(struct address_space *mapping, bool nowait)
{
}

static inline struct folio *devcache_back(struct address_space *mapping,
					  pgoff_t index, struct folio *folio,
					  bool nowait)
{
	return folio;
}

static inline bool devcache_back_batch(struct address_space *mapping,
				       struct folio_batch *fbatch)
{
	return true;
}

static inline bool devcache_may_admit(struct folio *folio)
{
	return true;
}

static inline bool devcache_admit(struct folio *folio, bool write)
{
	return true;
}

static inline int devcache_prepare(struct address_space *mapping,
				   pgoff_t first, pgoff_t end)
{
	return -EOPNOTSUPP;
}

static inline int devcache_move_out(struct folio *dst, struct folio *src)
{
	return -EOPNOTSUPP;
}

static inline int devcache_register(struct dev_pagemap *pgmap)
{
	return -EOPNOTSUPP;
}

static inline void devcache_unregister(struct dev_pagemap *pgmap)
{
}

static inline void devcache_evict(unsigned long pfn, unsigned long nr)
{
}

#endif /* CONFIG_DEVCACHE */

#endif /* _LINUX_DEVCACHE_H */
