// SPDX-License-Identifier: GPL-2.0
/*
 * Switches that break the rules of devcache, so that tests can show what each
 * of them is needed for: devcache_broken/ in debugfs.
 */
#include <linux/debugfs.h>
#include <linux/devcache.h>
#include <linux/init.h>

bool devcache_rules_broken[DEVCACHE_NR_RULES];

static const char * const names[] = {
	[DEVCACHE_RULE_ANY_REFS] = "any_refs",
	[DEVCACHE_RULE_CLEAN_FLAGS] = "clean_flags",
	[DEVCACHE_RULE_INVALIDATE] = "invalidate",
	[DEVCACHE_RULE_DIRTY_SHMEM] = "dirty_shmem",
	[DEVCACHE_RULE_SHRINK] = "shrink",
};

static int __init devcache_rules_init(void)
{
	struct dentry *dir = debugfs_create_dir("devcache_broken", NULL);
	int i;

	for (i = 0; i < DEVCACHE_NR_RULES; i++)
		debugfs_create_bool(names[i], 0600, dir,
				    &devcache_rules_broken[i]);
	return 0;
}
late_initcall(devcache_rules_init);
