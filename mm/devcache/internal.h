/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the Rust core calls in mm beyond the kernel crate: inline functions and
 * macros given an address by shim.c, and entries that C calls back.
 */
#ifndef _MM_DEVCACHE_INTERNAL_H
#define _MM_DEVCACHE_INTERNAL_H

#include <linux/devcache.h>
#include <linux/rmap.h>
#include <linux/shrinker.h>

#include "../internal.h"

struct seq_file;

/* Why a folio may not move to a device; the order is that of state.rs. */
struct devcache_facts {
	bool opted_in;
	bool exiting;
	bool swapfile;
	bool kernel_file;
	bool straddles_eof;
	bool uptodate;
	bool writeback;
	bool private_2;
	bool hwpoison;
	bool dropbehind;
	bool pinned;
	bool large;
};

void devcache_facts(struct folio *folio, struct address_space *mapping,
		    struct devcache_facts *facts);
struct folio *devcache_alloc(gfp_t gfp);
struct folio *devcache_try_alloc(gfp_t gfp);
gfp_t devcache_mapping_gfp(struct address_space *mapping);
int devcache_replace(struct address_space *mapping, struct folio *dst,
		     struct folio *src, bool wait);
void devcache_unmap(struct folio *folio);
pgoff_t devcache_folio_index(struct folio *folio);
bool devcache_folio_open(struct folio *folio);
bool devcache_pgmap_usable(struct dev_pagemap *pgmap);
void devcache_pgmap_set_open(struct dev_pagemap *pgmap, bool open);
bool devcache_pgmap_pfns(struct dev_pagemap *pgmap, int i,
			 unsigned long *first, unsigned long *end);
struct dev_pagemap *devcache_folio_pgmap(struct folio *folio);
int devcache_folio_nid(struct folio *folio);
unsigned long devcache_folio_pfn(struct folio *folio);
void devcache_copy_to_ram(struct devcache_copy *copies, unsigned int nr);
pgoff_t devcache_folio_end(struct folio *folio);
bool devcache_folio_large(struct folio *folio);
int devcache_split(struct address_space *mapping, struct folio *folio);
bool devcache_killed(void);
struct folio *devcache_pfn_folio(unsigned long pfn);
bool devcache_is_broken(enum devcache_rule rule);
bool devcache_is_shmem(struct address_space *mapping);
void devcache_poison(struct folio *folio);
bool devcache_drop_clean(struct address_space *mapping, struct folio *folio);
void devcache_drop_lost(struct address_space *mapping, struct folio *folio);
bool devcache_charged_to(struct folio *folio, struct mem_cgroup *memcg);
void devcache_note_charge(struct folio *folio, int nid);
void devcache_may_sleep(void);
void devcache_hooks_on(void);

/* Implemented in Rust. */
int devcache_init(void);
unsigned long devcache_shrink_count(void);
unsigned long devcache_shrink_scan(const struct shrink_control *sc);

#endif /* _MM_DEVCACHE_INTERNAL_H */
