//! What is read of an image, noted once and fetched beforehand the next time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kiln_block::{BlockDevice, BlockSource, ByteLen, ByteOffset, DeviceError, ReadOnly};
use kiln_overlaybd::{Input, Layer, Stack, Trace, Traced};

use crate::files::{kept, options};

/// Bytes, and how often they were asked for.
struct Counted {
    bytes: Vec<u8>,
    reads: Arc<AtomicU64>,
}

impl BlockSource for Counted {
    fn size(&self) -> ByteLen {
        ByteLen::of(&self.bytes)
    }

    fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let at = usize::try_from(at).unwrap();
        buffer.copy_from_slice(&self.bytes[at..at + buffer.len()]);
        Ok(())
    }
}

fn stack(reads: &Arc<AtomicU64>) -> Stack {
    let source = Counted { bytes: kept("e_ext4/l0.obd"), reads: Arc::clone(reads) };
    let input = Input::new("counted", Arc::new(ReadOnly(source)));
    Stack::new(vec![Layer::open(input, &options()).unwrap()]).unwrap()
}

#[test]
fn what_a_trace_names_is_there_before_it_is_read() {
    let reads = Arc::default();
    let traced = ReadOnly(Traced::new(stack(&reads)));
    let mut buffer = vec![0; 10_000];
    let places = [1024, 131_072, 5000, 1024, 200_000];
    for at in places {
        traced.read_at(ByteOffset::new(at), &mut buffer).unwrap();
    }
    let trace = traced.0.trace();
    let text = trace.to_text();
    assert_eq!(Trace::parse(&text, "trace").unwrap(), trace);
    let lines: Vec<&str> = text.lines().skip(1).collect();
    assert_eq!(lines, ["0 12288", "131072 12288", "12288 4096", "196608 16384"]);
    let reads = Arc::default();
    let fresh = ReadOnly(stack(&reads));
    assert_eq!(trace.prefetch(&fresh, 2), 45_056);
    let fetched = reads.load(Ordering::Relaxed);
    for at in places {
        fresh.read_at(ByteOffset::new(at), &mut buffer).unwrap();
    }
    assert_eq!(reads.load(Ordering::Relaxed), fetched, "nothing is fetched twice");
}

#[test]
fn a_trace_that_is_none_is_refused_and_a_wrong_one_reads_nothing() {
    for (text, line) in [("1", 1), ("# x\n1 2\n-1 2", 3), ("1 x", 1), ("18446744073709551615 1", 1)]
    {
        let told = Trace::parse(text, "t").unwrap_err().to_string();
        assert!(told.starts_with(&format!("t: line {line} ")), "{told}");
    }
    let far = Trace::parse("99999999999 4096\n", "t").unwrap();
    assert_eq!(far.prefetch(&ReadOnly(stack(&Arc::default())), 1), 0);
}
