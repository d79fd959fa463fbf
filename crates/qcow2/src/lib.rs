//! QEMU's disk images, version 2 and 3: read as a block device, and written in one pass.
