# SPDX-License-Identifier: GPL-2.0
# The front door. Everything is built and cached outside the checkout, in
# ${XDG_CACHE_HOME:-$HOME/.cache}/devcache, inside a Debian of its own.

# A command line variable reaches the recipes' environment as it is, never through a shell.
export CONFIG KSRC MIRROR CMD SHARE TIMEOUT MEM ACCEL GPU GPU_ARGS IOMMU TESTS CUTS SEED MINUTES

.PHONY: help demo test power-cuts soak upstream-tests kernel run shell clean-cache

help:
	@echo 'make demo             build everything, boot it, compute on files that live in GPU memory'
	@echo 'make test             build everything, run every test; the last line counts them'
	@echo 'make power-cuts       cut the power of the guest again and again while a GPU writes its files'
	@echo 'make soak             look for faults by chance, with and without KASAN, for MINUTES=<n>; writes a report'
	@echo 'make upstream-tests   run the kernel'"'"'s own tests of mm with and without the project, and compare'
	@echo 'make kernel           build the patched kernel only'
	@echo 'make run CMD=<cmd>    boot, run a shell command as root in the guest, return its status'
	@echo 'make shell            boot and give a shell in the guest'
	@echo 'make clean-cache      delete all that was built or fetched'
	@echo
	@echo 'CONFIG=<which>        release (as users run it), test (every cheap check) or kasan'
	@echo 'KSRC=<path>           kernel source instead of the Debian package: git tree, folder or tarball'
	@echo 'MIRROR=<url>          Debian mirror instead of the one apt uses on this machine'
	@echo 'SHARE=<folder>        show this folder to the guest at /host'
	@echo 'TIMEOUT=<seconds>     limit for one run of the guest (default 600; none for shell)'
	@echo 'MEM=<size>            memory of the guest (default 2G)'
	@echo 'ACCEL=kvm             use KVM; default is tcg, as /dev/kvm does not work everywhere it exists'
	@echo 'TESTS="cow thp"       categories of upstream-tests instead of all'
	@echo 'CUTS=<n> SEED=<n>     number of power-cuts (default 100), and what they, or soak, follow from'
	@echo 'GPU=<n>               number of GPUs (default 1; 2 for make test); GPU_ARGS="..." are options of their model'
	@echo 'IOMMU=1               GPUs reach memory through a strict IOMMU'

demo test power-cuts soak upstream-tests kernel run shell:
	@tools/sysroot/make-sysroot.sh
	@tools/sysroot/enter.sh /devcache/src/tools/front.sh $@

clean-cache:
	rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/devcache"
