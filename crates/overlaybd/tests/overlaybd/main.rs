//! Layers, stacks and uppers against images that other tools wrote, against plain byte arrays, and
//! against damage.

mod damage;
mod files;
mod golden;
mod model;
mod uppers;
mod written;
