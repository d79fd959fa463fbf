//! What is read of an image, noted once and fetched beforehand the next time.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use kiln_block::{BlockDevice, BlockSource, ByteLen, ByteOffset, DeviceError, ReadOnly};
use kiln_overlaybd::{
    Config, Input, Layer, LayerError, NewUpper, Sealing, Stack, Trace, Traced, Upper, Writable,
};

use crate::files::{kept, layer, options};

/// Where and how much was read, in order.
type Reads = Arc<Mutex<Vec<(u64, usize)>>>;

/// Bytes, and which of them were asked for.
struct Counted {
    bytes: Vec<u8>,
    reads: Reads,
}

impl BlockSource for Counted {
    fn size(&self) -> ByteLen {
        ByteLen::of(&self.bytes)
    }

    fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.reads.lock().unwrap().push((at, buffer.len()));
        let at = usize::try_from(at).unwrap();
        buffer.copy_from_slice(&self.bytes[at..at + buffer.len()]);
        Ok(())
    }
}

fn stack(reads: &Reads) -> Stack {
    let source = Counted { bytes: kept("e_ext4/l0.obd"), reads: Arc::clone(reads) };
    let input = Input::new("counted", Arc::new(ReadOnly(source)));
    Stack::new(vec![Layer::open(input, &options()).unwrap()]).unwrap()
}

#[test]
fn what_a_trace_names_is_there_before_it_is_read() {
    let reads = Reads::default();
    let traced = Traced::new(Arc::new(ReadOnly(stack(&reads))));
    let mut buffer = vec![0; 10_000];
    let places = [1024, 131_072, 5000, 1024, 200_000];
    for at in places {
        traced.read_at(ByteOffset::new(at), &mut buffer).unwrap();
    }
    let trace = traced.trace();
    let text = trace.to_text();
    assert_eq!(Trace::parse(&text, "trace").unwrap(), trace);
    let lines: Vec<&str> = text.lines().skip(1).collect();
    assert_eq!(lines, ["0 12288", "131072 12288", "12288 4096", "196608 16384"]);
    let reads = Reads::default();
    let fresh = ReadOnly(stack(&reads));
    assert_eq!(trace.prefetch(&fresh, 2, &AtomicBool::new(false)), 45_056);
    let fetched = reads.lock().unwrap().clone();
    for at in places {
        fresh.read_at(ByteOffset::new(at), &mut buffer).unwrap();
    }
    // Whoever keeps what was fetched is asked for nothing else.
    let before: BTreeSet<u64> =
        fetched.iter().flat_map(|(at, len)| *at..at + *len as u64).collect();
    let later = reads.lock().unwrap()[fetched.len()..].to_vec();
    for (at, len) in later {
        assert!((at..at + len as u64).all(|byte| before.contains(&byte)), "{at}+{len}");
    }
}

#[test]
fn a_trace_that_is_none_is_refused_and_a_wrong_one_reads_nothing() {
    for (text, line) in [("1", 1), ("# x\n1 2\n-1 2", 3), ("1 x", 1), ("18446744073709551615 1", 1)]
    {
        let told = Trace::parse(text, "t").unwrap_err().to_string();
        assert!(told.starts_with(&format!("t: line {line} ")), "{told}");
    }
    let far = Trace::parse("99999999999 4096\n", "t").unwrap();
    let disk = ReadOnly(stack(&Arc::default()));
    assert_eq!(far.prefetch(&disk, 1, &AtomicBool::new(false)), 0);
    let all = Trace::parse("0 99999999999\n", "t").unwrap();
    assert_eq!(all.prefetch(&disk, 2, &AtomicBool::new(true)), 0, "somebody had enough");
}

/// Records as other tools write them.
fn records(reads: &[(u8, u32, u64, u64)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (what, layer, at, len) in reads {
        bytes.extend([*what, 0, 0, 0]);
        bytes.extend(layer.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(at.to_le_bytes());
    }
    bytes
}

fn of_layers(checksum: u32, records: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x20, 0x18, 0xef, 0xc2, 9, 9, 9, 9];
    bytes.extend((records.len() as u64).to_le_bytes());
    bytes.extend(checksum.to_le_bytes());
    bytes.extend([7; 4]);
    bytes.extend(records);
    bytes
}

/// CRC-32C without inversions, bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |state, byte| {
        (0..8).fold(state ^ u32::from(*byte), |state, _| {
            if state & 1 == 1 { state >> 1 ^ 0x82f6_3b78 } else { state >> 1 }
        })
    })
}

/// Three layers: the second one hides the end of the first, the third one zeros.
fn three_layers() -> Stack {
    let folder = tempfile::tempdir().unwrap();
    let make = |number: u8, change: &dyn Fn(&Writable)| {
        let path = |kind: &str| folder.path().join(format!("{kind}{number}"));
        let new = NewUpper { virtual_size: 1 << 20, ..NewUpper::default() };
        let upper = Upper::create_log(&path("data"), &path("index"), &new).unwrap();
        let disk = Writable::new(upper, None).unwrap();
        change(&disk);
        crate::files::committed(&disk, &Sealing::default())
    };
    let write = |disk: &Writable, at: u64, len: usize| {
        disk.write_at(ByteOffset::new(at), &vec![1; len]).unwrap();
    };
    let layers = [
        make(0, &|disk| write(disk, 0, 65536)),
        make(1, &|disk| {
            write(disk, 32768, 65536);
            write(disk, 524_288, 8192);
        }),
        make(2, &|disk| disk.discard(ByteOffset::ZERO, ByteLen::new(8192)).unwrap()),
    ];
    Stack::new(layers.iter().map(|bytes| layer("layer", bytes).unwrap()).collect()).unwrap()
}

#[test]
fn a_trace_by_layer_names_the_same_bytes_as_the_trace_of_the_disk() {
    let stack = three_layers();
    let trace = Trace::parse("524288 4096\n0 16384\n28672 8192\n200000 4096\n", "t").unwrap();
    let bytes = trace.to_layers(&stack);
    // Of the second layer its second part, then of the first what shows of it, and where the layers meet; not what
    // is zero, and not what no layer has.
    let wanted = records(&[
        (b'R', 1, 4096 + 65536, 4096),
        (b'R', 0, 4096 + 8192, 8192),
        (b'R', 0, 4096 + 28672, 4096),
        (b'R', 1, 4096, 4096),
    ]);
    assert_eq!(bytes[24..], wanted);
    assert!(Trace::is_of_layers(&bytes));
    let again = Trace::of_layers(&bytes, "t", &stack).unwrap();
    assert_eq!(
        again.to_text().lines().skip(1).collect::<Vec<_>>(),
        ["524288 4096", "8192 8192", "28672 8192"]
    );
    // With bytes between the fields, and with records of what others may add.
    let mut others = records(&[(b'W', 0, 4096, 65536), (b'R', 9, 4096, 65536)]);
    others.extend(wanted);
    others[2] = 2;
    let others = of_layers(crc(&others), &others);
    assert_eq!(Trace::of_layers(&others, "t", &stack).unwrap(), again);
    // What is hidden is not fetched, nor what lies nowhere.
    let hidden =
        records(&[(b'R', 0, 4096 + 40960, 4096), (b'R', 0, 0, 4096), (b'R', 1, u64::MAX, 9)]);
    let hidden = of_layers(crc(&hidden), &hidden);
    assert!(Trace::of_layers(&hidden, "t", &stack).unwrap().is_empty());
}

#[test]
fn traces_by_layer_are_those_that_other_tools_write() {
    // The records' checksum is known from elsewhere.
    let stack = three_layers();
    let mut wanted = vec![0x20, 0x18, 0xef, 0xc2, 0, 0, 0, 0, 48, 0, 0, 0, 0, 0, 0, 0];
    wanted.extend(0xd292_83dd_u32.to_le_bytes());
    wanted.extend([0; 4]);
    for (layer, len, at) in [(1u32, 4096u64, 0u64), (0, 8192, 16384)] {
        wanted.extend([b'R', 0, 0, 0]);
        wanted.extend(layer.to_le_bytes());
        wanted.extend(len.to_le_bytes());
        wanted.extend(at.to_le_bytes());
    }
    let read = Trace::of_layers(&wanted, "t", &stack).unwrap();
    assert_eq!(read.to_text().lines().skip(1).collect::<Vec<_>>(), ["12288 8192"]);
    let written = read.to_layers(&stack);
    assert_eq!(written.len(), 48);
    assert_eq!(written[24..], wanted[48..], "the first of them is no part of the disk");
}

#[test]
fn a_trace_by_layer_that_is_damaged_is_refused_with_the_place() {
    let stack = three_layers();
    let sound = Trace::parse("0 65536\n", "t").unwrap().to_layers(&stack);
    let refusal = |bytes: &[u8]| Trace::of_layers(bytes, "t", &stack).unwrap_err().to_string();
    let mut longer = sound.clone();
    longer.push(0);
    let mut other = sound.clone();
    *other.last_mut().unwrap() ^= 1;
    for (bytes, told) in [
        (&b"/etc/passwd"[..], "t is damaged at byte 0: there is no magic of a trace"),
        (&sound[..23], "t is damaged at byte 4: the header of the trace is cut"),
        (&sound[..30], "t is damaged at byte 8: there are 6 bytes of records instead of"),
        (&longer[..], "t is damaged at byte 8: there are"),
        (&other[..], "t is damaged at byte 16: the CRC of the records is"),
    ] {
        assert!(refusal(bytes).starts_with(told), "{}", refusal(bytes));
    }
}

#[test]
fn a_trace_comes_back_out_of_the_tar_it_was_sent_in() {
    let trace = Trace::parse("0 65536\n", "t").unwrap().to_layers(&three_layers());
    let packed = Trace::in_tar(&trace);
    let mut tar = tar::Archive::new(&packed[..]);
    let entry = tar.entries().unwrap().next().unwrap().unwrap();
    assert_eq!(entry.path().unwrap().to_str(), Some("trace"));
    assert_eq!((entry.size(), entry.header().mode().unwrap()), (trace.len() as u64, 0o444));
    assert_eq!(Trace::from_tar(&packed, "t").unwrap(), trace);
    assert_eq!(Trace::from_tar(&trace, "t").unwrap(), trace, "without a tar");
}

#[test]
fn a_configuration_may_have_a_trace_on_top_of_its_layers() {
    let parse = |text: &str| Config::parse(text, "c").unwrap();
    let config = parse(r#"{"accelerationLayer": true, "lowers": [{"file": "l"}, {"dir": "/a"}]}"#);
    assert_eq!(config.lowers.len(), 1);
    assert_eq!(config.trace.unwrap().to_str(), Some("/a/trace"));
    assert_eq!(parse(r#"{"lowers": [{"file": "l"}, {"dir": "/a"}]}"#).trace, None);
    let alone = Config::parse(r#"{"accelerationLayer": true, "lowers": [{"dir": "/a"}]}"#, "c");
    assert!(matches!(alone, Err(LayerError::Config { .. })));
}

#[test]
fn a_disk_that_is_traced_is_written_like_any_other() {
    let traced = Traced::new(Arc::new(kiln_block::MemoryDevice::new(ByteLen::mib(1))));
    let writable = kiln_block::testing::Abilities { granularity: 1, writable: true };
    kiln_block::testing::conforms(&traced, writable);
}
