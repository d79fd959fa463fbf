//! A client made of bytes, and a disk for it.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiln_block::{BlockDevice, ByteLen, ByteOffset, MemoryDevice};
use kiln_export::nbd::Channel;
use kiln_export::{Export, Exports};

/// Says some bytes, then leaves; remembers what it was told.
pub struct Memory {
    said: Mutex<Vec<u8>>,
    told: Mutex<Vec<u8>>,
}

impl Memory {
    pub fn saying(bytes: &[u8]) -> Memory {
        let mut said = bytes.to_vec();
        said.reverse();
        Memory { said: Mutex::new(said), told: Mutex::new(Vec::new()) }
    }

    pub fn told(self) -> Vec<u8> {
        self.told.into_inner().unwrap()
    }
}

impl Channel for Memory {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut said = self.said.lock().unwrap();
        // Pieces of an awkward length meet every place where a message can be cut.
        let count = buffer.len().min(said.len()).min(37);
        for byte in &mut buffer[..count] {
            *byte = said.pop().unwrap_or(0);
        }
        Ok(count)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.told.lock().unwrap().extend(bytes);
        Ok(())
    }

    fn hang_up(&self) {}

    fn wait_at_most(&self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }
}

/// 256 KiB with some data, named `d`.
pub fn disk() -> Exports {
    let disk = MemoryDevice::new(ByteLen::kib(256));
    disk.write_at(ByteOffset::new(100_000), &[1; 5000]).unwrap();
    Exports::one("d", Export::new(Arc::new(disk))).unwrap()
}
