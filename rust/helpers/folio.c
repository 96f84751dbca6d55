// SPDX-License-Identifier: GPL-2.0

#include <linux/backing-dev.h>
#include <linux/backing-dev.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/pagemap.h>

__rust_helper void rust_helper_folio_get(struct folio *folio)
{
	folio_get(folio);
}

__rust_helper void rust_helper_folio_put(struct folio *folio)
{
	folio_put(folio);
}

__rust_helper void rust_helper_folio_lock(struct folio *folio)
{
	folio_lock(folio);
}

__rust_helper bool rust_helper_folio_trylock(struct folio *folio)
{
	return folio_trylock(folio);
}

__rust_helper unsigned long rust_helper_folio_pfn(const struct folio *folio)
{
	return folio_pfn(folio);
}

__rust_helper bool rust_helper_folio_is_device_private(const struct folio *folio)
{
	return folio_is_device_private(folio);
}

__rust_helper bool rust_helper_folio_test_anon(const struct folio *folio)
{
	return folio_test_anon(folio);
}

__rust_helper bool rust_helper_folio_test_dirty(const struct folio *folio)
{
	return folio_test_dirty(folio);
}

__rust_helper bool rust_helper_folio_mapped(const struct folio *folio)
{
	return folio_mapped(folio);
}

__rust_helper bool rust_helper_mapping_exiting(const struct address_space *mapping)
{
	return mapping_exiting(mapping);
}

__rust_helper bool rust_helper_mapping_devcache(const struct address_space *mapping)
{
	return mapping_devcache(mapping);
}

__rust_helper bool rust_helper_mapping_can_writeback(struct address_space *mapping)
{
	return mapping_can_writeback(mapping);
}

__rust_helper void rust_helper_mapping_set_error(struct address_space *mapping, int error)
{
	mapping_set_error(mapping, error);
}

__rust_helper gfp_t rust_helper_mapping_gfp_mask(const struct address_space *mapping)
{
	return mapping_gfp_mask(mapping);
}
