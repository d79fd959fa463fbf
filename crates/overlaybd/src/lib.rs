//! overlaybd images: layers of a disk (LSMT), usually compressed (ZFile), often wrapped in a tar,
//! stacked on each other and read as one disk, with an upper for what is written.
