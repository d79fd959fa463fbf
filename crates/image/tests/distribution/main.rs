//! A distribution's kernel as users have it, and images with its modules; needs a kernel
//! (`KILN_TEST_KERNEL`, or one that `make kernel` fetched).

mod image;
mod kernel;

use kiln_image::kernel::{Host, Kernel, KernelCache, find};

/// The kernel all tests use, found as `--kernel` finds it.
fn distribution_kernel() -> Kernel {
    let image = kiln_model::testing::kernel();
    find(image.to_str(), &Host::this(), &KernelCache::new("/dev/null/no-kernels"))
        .unwrap_or_else(|error| panic!("{error}"))
}
