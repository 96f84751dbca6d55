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

struct folio *devcache_back(struct address_space *mapping, pgoff_t index,
			    struct folio *folio, bool nowait);
bool devcache_back_batch(struct address_space *mapping,
			 struct folio_batch *fbatch);
bool devcache_may_admit(struct folio *folio);
bool devcache_admit(struct folio *folio, bool write);
int devcache_move_out(struct folio *dst, struct folio *src);

int devcache_register(struct dev_pagemap *pgmap);
void devcache_unregister(struct dev_pagemap *pgmap);

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
	return false;
}

static inline bool devcache_admit(struct folio *folio, bool write)
{
	return true;
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

#endif /* CONFIG_DEVCACHE */

#endif /* _LINUX_DEVCACHE_H */
