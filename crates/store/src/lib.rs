//! A pool of disks with many users at once: the process that owns it, and the clients that speak to it.
