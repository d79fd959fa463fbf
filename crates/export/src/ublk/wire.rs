//! The numbers and layouts of Linux's `ublk_cmd.h`. Integers have the machine's byte order, which is
//! little-endian wherever Kiln runs.
//!
//! A command to the controller, in the 80 bytes that a large submission entry has for it:
//!
//! | offset | size | field    | meaning                                             |
//! |-------:|-----:|----------|-----------------------------------------------------|
//! |      0 |    4 | device   | which; `u32::MAX` asks for a free number            |
//! |      4 |    2 | queue    | `u16::MAX`: the device itself                       |
//! |      6 |    2 | length   | of what lies at the address                         |
//! |      8 |    8 | address  | what the command reads or fills                     |
//! |     16 |    8 | data     | a number, for the commands that need one            |
//! |     24 |    8 | reserved | zero                                                |

/// Which device; the controller is asked to choose one.
pub(super) const ANY_DEVICE: u32 = u32::MAX;

/// Commands to the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Control {
    GetInfo,
    Add,
    Delete,
    Start,
    Stop,
    SetParameters,
}

/// What a queue does with a request of the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Io {
    /// Asks for the first request.
    Fetch,
    /// Answers one and asks for the next.
    CommitAndFetch,
}

/// As `_IOR('u', number, size)` and `_IOWR` make them.
const fn ioctl(writes: bool, number: u32, size: u32) -> u32 {
    let direction = if writes { 3 } else { 2 };
    direction << 30 | size << 16 | (b'u' as u32) << 8 | number
}

impl Control {
    pub(super) const fn code(self) -> u32 {
        match self {
            Control::GetInfo => ioctl(false, 0x02, 32),
            Control::Add => ioctl(true, 0x04, 32),
            Control::Delete => ioctl(true, 0x05, 32),
            Control::Start => ioctl(true, 0x06, 32),
            Control::Stop => ioctl(true, 0x07, 32),
            Control::SetParameters => ioctl(true, 0x08, 32),
        }
    }
}

impl Io {
    pub(super) const fn code(self) -> u32 {
        match self {
            Io::Fetch => ioctl(true, 0x20, 16),
            Io::CommitAndFetch => ioctl(true, 0x21, 16),
        }
    }
}

/// A command to the controller.
pub(super) fn control(device: u32, address: u64, len: u16, data: u64) -> [u8; 80] {
    let mut bytes = [0; 80];
    bytes[0..4].copy_from_slice(&device.to_le_bytes());
    bytes[4..6].copy_from_slice(&u16::MAX.to_le_bytes());
    bytes[6..8].copy_from_slice(&len.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..24].copy_from_slice(&data.to_le_bytes());
    bytes
}

/// A queue's answer to the request with this tag: bytes done, or a negative error number.
pub(super) fn io(queue: u16, tag: u16, result: i32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0..2].copy_from_slice(&queue.to_le_bytes());
    bytes[2..4].copy_from_slice(&tag.to_le_bytes());
    bytes[4..8].copy_from_slice(&result.to_le_bytes());
    bytes
}

/// Commands are numbered as `ioctl`s are (Linux 6.4).
const COMMANDS_AS_IOCTL: u64 = 1 << 6;
/// Data is copied by `pread` and `pwrite` on the device's own file (Linux 6.5).
const COPIED_BY_SERVER: u64 = 1 << 7;

/// What is known of a device, 64 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Info {
    pub(super) queues: u16,
    pub(super) depth: u16,
    /// 0: not started, or dead.
    pub(super) state: u16,
    pub(super) largest_io: u32,
    pub(super) device: u32,
    /// What its server noted.
    pub(super) note: u64,
}

impl Info {
    pub(super) const LEN: usize = 64;

    pub(super) fn to_bytes(self) -> [u8; Info::LEN] {
        let mut bytes = [0; Info::LEN];
        bytes[0..2].copy_from_slice(&self.queues.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.depth.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.state.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.largest_io.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.device.to_le_bytes());
        // No server yet: -1.
        bytes[16..20].fill(0xff);
        bytes[24..32].copy_from_slice(&(COMMANDS_AS_IOCTL | COPIED_BY_SERVER).to_le_bytes());
        bytes[32..40].copy_from_slice(&self.note.to_le_bytes());
        bytes
    }

    pub(super) fn parse(bytes: &[u8; Info::LEN]) -> Info {
        Info {
            queues: u16_at(bytes, 0),
            depth: u16_at(bytes, 2),
            state: u16_at(bytes, 4),
            largest_io: u32_at(bytes, 8),
            device: u32_at(bytes, 12),
            note: u64_at(bytes, 32),
        }
    }

    /// Whether the device does what was asked for; an older kernel drops what it does not know.
    pub(super) fn can_serve(bytes: &[u8; Info::LEN]) -> bool {
        let wanted = COMMANDS_AS_IOCTL | COPIED_BY_SERVER;
        u64_at(bytes, 24) & wanted == wanted
    }
}

/// What a disk can do, as the kernel is told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parameters {
    pub(super) sectors: u64,
    pub(super) read_only: bool,
    pub(super) largest_io: u32,
}

/// Sectors of one discard or write-zeroes: 1 GiB.
const MOST_SECTORS: u32 = 1 << 21;

impl Parameters {
    pub(super) const LEN: usize = 60;

    pub(super) fn to_bytes(self) -> [u8; Parameters::LEN] {
        let mut bytes = [0; Parameters::LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &60_u32.to_le_bytes());
        // Basic ones follow, and those about discards.
        put(4, &3_u32.to_le_bytes());
        // A volatile cache that honours FUA.
        let attributes = u32::from(self.read_only) | 1 << 2 | 1 << 3;
        put(8, &attributes.to_le_bytes());
        // Powers of two: logical and physical block, best and least transfer.
        put(12, &[9, 12, 12, 12]);
        put(16, &(self.largest_io >> 9).to_le_bytes());
        put(24, &self.sectors.to_le_bytes());
        put(44, &4096_u32.to_le_bytes());
        let most = if self.read_only { 0 } else { MOST_SECTORS };
        put(48, &most.to_le_bytes());
        put(52, &most.to_le_bytes());
        put(56, &1_u16.to_le_bytes());
        bytes
    }
}

/// What the kernel wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
    /// Nothing known.
    Unknown(u8),
}

/// One request of the kernel's: 24 bytes in memory that a queue shares with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) operation: Operation,
    /// The request is done when its data is durable.
    pub(super) fua: bool,
    /// Zeros keep their space.
    pub(super) keep_allocated: bool,
    pub(super) sectors: u32,
    pub(super) start: u64,
}

impl Request {
    pub(super) const LEN: usize = 24;

    pub(super) fn parse(bytes: &[u8; Request::LEN]) -> Request {
        let operation = match bytes[0] {
            0 => Operation::Read,
            1 => Operation::Write,
            2 => Operation::Flush,
            3 => Operation::Discard,
            5 => Operation::WriteZeroes,
            other => Operation::Unknown(other),
        };
        let flags = u32_at(bytes, 0);
        Request {
            operation,
            fua: flags & 1 << 13 != 0,
            keep_allocated: flags & 1 << 15 != 0,
            sectors: u32_at(bytes, 4),
            start: u64_at(bytes, 8),
        }
    }
}

/// Where a queue's requests lie in the device's file, for `mmap`.
pub(super) fn requests_at(queue: u16) -> u64 {
    const LARGEST_DEPTH: u64 = 4096;
    u64::from(queue) * LARGEST_DEPTH * Request::LEN as u64
}

/// Where the data of a request lies in the device's file, for `pread` and `pwrite`.
pub(super) fn data_at(queue: u16, tag: u16) -> u64 {
    0x8000_0000 + (u64::from(queue) << 41 | u64::from(tag) << 25)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_numbers_of_the_header() {
        assert_eq!(Control::GetInfo.code(), 0x8020_7502);
        assert_eq!(Control::Add.code(), 0xc020_7504);
        assert_eq!(Control::SetParameters.code(), 0xc020_7508);
        assert_eq!(Io::Fetch.code(), 0xc010_7520);
        assert_eq!(Io::CommitAndFetch.code(), 0xc010_7521);
    }

    #[test]
    fn what_is_told_about_a_device_reads_back() {
        let info =
            Info { queues: 2, depth: 64, state: 1, largest_io: 1 << 19, device: 7, note: 42 };
        let bytes = info.to_bytes();
        assert_eq!(Info::parse(&bytes), info);
        assert!(Info::can_serve(&bytes));
        let mut older = bytes;
        older[24] = 0;
        assert!(!Info::can_serve(&older));
    }

    #[test]
    fn a_request_is_understood() {
        let mut bytes = [0; Request::LEN];
        bytes[0] = 1;
        bytes[1] = 1 << 5;
        bytes[4] = 8;
        bytes[8] = 100;
        let request = Request::parse(&bytes);
        assert_eq!(request.operation, Operation::Write);
        assert!(request.fua && !request.keep_allocated);
        assert_eq!((request.sectors, request.start), (8, 100));
        bytes[0] = 9;
        assert_eq!(Request::parse(&bytes).operation, Operation::Unknown(9));
    }

    #[test]
    fn places_in_the_devices_file_do_not_overlap() {
        assert_eq!(requests_at(1), 98_304);
        assert_eq!(data_at(0, 0), 1 << 31);
        assert_eq!(data_at(0, 1) - data_at(0, 0), 32 << 20);
        assert_eq!(data_at(1, 0) - data_at(0, 0), 1 << 41);
    }
}
