//! What `kiln` says and how it ends, where no virtual machine is needed.

mod completion;
mod config;
mod disk;
mod doctor;
mod errors;
mod ext2;
mod faults;
mod frontends;
mod help;
mod history;
mod kiln;
mod layer;
mod layer_model;
mod layer_remote;
mod lazy;
mod nbd;
mod observing;
mod owner;
mod planning;
mod supermin;
mod transfer;
mod unprivileged;
