// SPDX-License-Identifier: GPL-2.0

#include <linux/dma-mapping.h>
#include <linux/hmm.h>

__rust_helper struct page *rust_helper_hmm_pfn_to_page(unsigned long hmm_pfn)
{
	return hmm_pfn_to_page(hmm_pfn);
}

__rust_helper bool rust_helper_dma_need_sync(struct device *dev,
					     dma_addr_t dma_addr)
{
	return dma_need_sync(dev, dma_addr);
}
