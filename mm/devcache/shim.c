// SPDX-License-Identifier: GPL-2.0
/*
 * The C side of the Rust core: the static key, exports, and functions for what
 * C offers only as macro or inline.  Decisions are made in Rust.
 */
#include <linux/backing-dev.h>
#include <linux/export.h>
#include <linux/gfp.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/lockdep.h>
#include <linux/memcontrol.h>
#include <linux/migrate.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/shmem_fs.h>
#include <linux/shrinker.h>

#include "internal.h"

DEFINE_STATIC_KEY_FALSE(devcache_key);
EXPORT_SYMBOL_GPL(devcache_key);

EXPORT_SYMBOL_GPL(devcache_back);
EXPORT_SYMBOL_GPL(devcache_evict);
EXPORT_SYMBOL_GPL(devcache_prepare);
EXPORT_SYMBOL_GPL(devcache_register);
EXPORT_SYMBOL_GPL(devcache_unregister);

void devcache_facts(struct folio *folio, struct address_space *mapping,
		    struct devcache_facts *facts)
{
	loff_t end = folio_pos(folio) + folio_size(folio);

	*facts = (struct devcache_facts) {
		.opted_in = mapping_devcache(mapping) &&
			    !mapping_min_folio_order(mapping),
		.exiting = mapping_exiting(mapping),
		.swapfile = IS_SWAPFILE(mapping->host),
		.kernel_file = test_bit(AS_KERNEL_FILE, &mapping->flags),
		.straddles_eof = end > i_size_read(mapping->host),
		.uptodate = folio_test_uptodate(folio),
		.writeback = folio_test_writeback(folio),
		.private_2 = folio_test_private_2(folio),
		.hwpoison = folio_test_hwpoison(folio),
		.dropbehind = folio_test_dropbehind(folio),
		.pinned = folio_maybe_dma_pinned(folio),
		.large = folio_test_large(folio),
	};
}

struct folio *devcache_alloc(gfp_t gfp)
{
	return folio_alloc(gfp, 0);
}

/* Takes only what is free, even in reclaim, which may use the reserves. */
struct folio *devcache_try_alloc(gfp_t gfp)
{
	gfp &= ~(__GFP_RECLAIM | __GFP_NOFAIL);
	return folio_alloc(gfp | __GFP_NOMEMALLOC | __GFP_NOWARN, 0);
}

/*
 * NOFS: the caller may hold folio locks, a transaction or unsubmitted bios, and
 * reclaim must not wait for any of them.  NOFAIL: a lookup cannot report an
 * error that its callers would know what to do with.
 */
gfp_t devcache_mapping_gfp(struct address_space *mapping)
{
	return mapping_gfp_constraint(mapping, ~__GFP_FS) | __GFP_NOFAIL;
}

int devcache_replace(struct address_space *mapping, struct folio *dst,
		     struct folio *src, bool wait)
{
	int err = mapping->a_ops->migrate_folio(mapping, dst, src,
					wait ? MIGRATE_SYNC : MIGRATE_ASYNC);

	/* As after any migration: whoever waits for the lock sees it is gone. */
	if (!err)
		src->mapping = NULL;
	return err;
}

/* A fork may add an entry behind the walk, so until none is left. */
void devcache_unmap(struct folio *folio)
{
	while (folio_mapped(folio)) {
		try_to_migrate(folio, TTU_SYNC);
		cond_resched();
	}
}

pgoff_t devcache_folio_index(struct folio *folio)
{
	return folio->index;
}

bool devcache_folio_open(struct folio *folio)
{
	return READ_ONCE(folio->pgmap->flags) & PGMAP_DEVCACHE;
}

bool devcache_pgmap_usable(struct dev_pagemap *pgmap)
{
	return pgmap->type == MEMORY_DEVICE_PRIVATE && pgmap->ops &&
	       pgmap->ops->copy_to_ram && !(pgmap->flags & PGMAP_DEVCACHE);
}

void devcache_pgmap_set_open(struct dev_pagemap *pgmap, bool open)
{
	if (open)
		WRITE_ONCE(pgmap->flags, pgmap->flags | PGMAP_DEVCACHE);
	else
		WRITE_ONCE(pgmap->flags, pgmap->flags & ~PGMAP_DEVCACHE);
}

bool devcache_pgmap_pfns(struct dev_pagemap *pgmap, int i,
			 unsigned long *first, unsigned long *end)
{
	if (i >= pgmap->nr_range)
		return false;
	*first = PHYS_PFN(pgmap->ranges[i].start);
	*end = *first + PHYS_PFN(range_len(&pgmap->ranges[i]));
	return true;
}

struct dev_pagemap *devcache_folio_pgmap(struct folio *folio)
{
	return folio->pgmap;
}

unsigned long devcache_folio_pfn(struct folio *folio)
{
	return folio_pfn(folio);
}

int devcache_folio_nid(struct folio *folio)
{
	return folio_nid(folio);
}

/*
 * The callback is a leaf. As it is called under nearly everything, lockdep
 * finds a callback that takes what its callers hold; that it must not enter
 * reclaim is told to lockdep at boot, since it is rarely called from there.
 */
#ifdef CONFIG_LOCKDEP
static struct lockdep_map devcache_copy_map =
	STATIC_LOCKDEP_MAP_INIT("devcache_copy_to_ram", &devcache_copy_map);
#endif

void devcache_copy_to_ram(struct devcache_copy *copies, unsigned int nr)
{
	struct dev_pagemap *pgmap = copies->src->pgmap;

	lock_map_acquire(&devcache_copy_map);
	pgmap->ops->copy_to_ram(pgmap, copies, nr);
	lock_map_release(&devcache_copy_map);
}

pgoff_t devcache_folio_end(struct folio *folio)
{
	return folio_next_index(folio);
}

bool devcache_folio_large(struct folio *folio)
{
	return folio_test_large(folio);
}

int devcache_split(struct address_space *mapping, struct folio *folio)
{
	loff_t pos = folio_pos(folio);
	int err = 0;

	if (mapping_can_writeback(mapping))
		err = filemap_write_and_wait_range(mapping, pos,
						   pos + folio_size(folio) - 1);
	if (err)
		return err;

	folio_lock(folio);
	if (folio->mapping == mapping)
		err = split_folio(folio);
	folio_unlock(folio);
	return err;
}

bool devcache_killed(void)
{
	cond_resched();
	return fatal_signal_pending(current);
}

struct folio *devcache_pfn_folio(unsigned long pfn)
{
	return folio_get_nontail_page(pfn_to_page(pfn));
}

bool devcache_is_broken(enum devcache_rule rule)
{
	return devcache_rule_broken(rule);
}

bool devcache_is_shmem(struct address_space *mapping)
{
	return shmem_mapping(mapping);
}

void devcache_poison(struct folio *folio)
{
	unmap_mapping_folio(folio);
	shmem_poison_folio(folio);
}

/* What reclaim does with a folio on the LRU. */
bool devcache_drop_clean(struct address_space *mapping, struct folio *folio)
{
	try_to_unmap(folio, 0);
	/* If it is mlocked, a reference was put into the batch of this CPU. */
	if (folio_mapped(folio))
		mlock_drain_local();
	return mapping_evict_folio(mapping, folio);
}

/*
 * A clean folio is dropped as invalidation would: truncation of one takes locks
 * in btrfs that callers of a lookup may hold.
 */
void devcache_drop_lost(struct address_space *mapping, struct folio *folio)
{
	if (folio_test_dirty(folio) ||
	    folio_unmap_invalidate(mapping, folio, GFP_NOFS) < 0)
		truncate_inode_folio(mapping, folio);
}

bool devcache_charged_to(struct folio *folio, struct mem_cgroup *memcg)
{
	bool ret;

	if (!memcg || mem_cgroup_disabled())
		return true;
	rcu_read_lock();
	ret = folio_memcg(folio) == memcg;
	rcu_read_unlock();
	return ret;
}

static struct shrinker *devcache_shrinker;

void devcache_note_charge(struct folio *folio, int nid)
{
#ifdef CONFIG_MEMCG
	struct mem_cgroup *memcg;

	rcu_read_lock();
	for (memcg = folio_memcg(folio); memcg; memcg = parent_mem_cgroup(memcg))
		set_shrinker_bit(memcg, nid, devcache_shrinker->id);
	rcu_read_unlock();
#endif
}

static unsigned long devcache_count_objects(struct shrinker *shrinker,
					    struct shrink_control *sc)
{
	return devcache_shrink_count() ?: SHRINK_EMPTY;
}

/* File systems drop and clean folios only where reclaim may enter them. */
static unsigned long devcache_scan_objects(struct shrinker *shrinker,
					   struct shrink_control *sc)
{
	return sc->gfp_mask & __GFP_FS ? devcache_shrink_scan(sc) : SHRINK_STOP;
}

void devcache_may_sleep(void)
{
	might_sleep();
}

void devcache_hooks_on(void)
{
	static_branch_enable(&devcache_key);
}

/* Before any driver. */
static int __init devcache_setup(void)
{
	devcache_shrinker = shrinker_alloc(SHRINKER_MEMCG_AWARE | SHRINKER_NONSLAB,
					   "devcache");
	if (!devcache_shrinker)
		return -ENOMEM;
	devcache_shrinker->count_objects = devcache_count_objects;
	devcache_shrinker->scan_objects = devcache_scan_objects;
	shrinker_register(devcache_shrinker);

	fs_reclaim_acquire(GFP_KERNEL);
	lock_map_acquire(&devcache_copy_map);
	lock_map_release(&devcache_copy_map);
	fs_reclaim_release(GFP_KERNEL);

	return devcache_init();
}
subsys_initcall(devcache_setup);
