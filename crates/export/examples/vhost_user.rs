//! Serves a raw file, or memory of a given size, to a virtual machine until standard input ends:
//! `cargo run -p kiln-export --example vhost_user -- SOCKET FILE-OR-SIZE [GATHER-MICROSECONDS]`.
//!
//! Each line on standard input is a size the disk grows to, while it is used.

use std::error::Error;
use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kiln_block::{BlockDevice, ByteLen, FileDevice, MemoryDevice};
use kiln_export::{Export, vhost_user};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [socket, disk, rest @ ..] = words.as_slice() else {
        return Err("usage: vhost_user SOCKET FILE-OR-SIZE [GATHER-MICROSECONDS]".into());
    };
    let device: Arc<dyn BlockDevice> = match disk.parse::<ByteLen>() {
        Ok(size) => Arc::new(MemoryDevice::new(size)),
        Err(_) => Arc::new(FileDevice::open(Path::new(disk), false)?),
    };
    let mut options = vhost_user::Options { serial: "kiln".to_owned(), ..Default::default() };
    if let [gather] = rest {
        options.gather = Duration::from_micros(gather.parse()?);
    }
    let export = Export::new(Arc::clone(&device));
    let server = vhost_user::Server::start(Path::new(socket), export, options)?;
    for line in std::io::stdin().lock().lines() {
        device.grow(line?.parse()?)?;
        server.notify_resize();
    }
    server.stop();
    Ok(())
}
