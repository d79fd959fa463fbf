//! Disks on overlaybd images: seven layers of other tools' and our own, written to above, and never mistaken.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_block::{BlockDevice, ByteLen, ByteOffset, DeviceError, MemoryDevice, ReadOnly};
use kiln_overlaybd::{Input, Layer, OpenOptions, Sealing, Stack, Uuid, pack};
use kiln_parallax::{DiskOptions, Pool, PoolOptions};
use kiln_store::{LayeredBase, Layers, Reply, Request, Start, Store};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn options() -> PoolOptions {
    let bases = Some(Arc::new(Layers::default()) as _);
    PoolOptions { log: ByteLen::mib(1), bases, ..PoolOptions::default() }
}

/// Copies of layers that other tools made, between others that hold a few blocks each.
fn seven(folder: &Path) -> Result<Vec<PathBuf>, Box<dyn std::error::Error>> {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../overlaybd/tests/data/c_stack");
    let mut files = Vec::new();
    for number in 0_u8..7 {
        let file = folder.join(format!("l{number}.obd"));
        files.push(file.clone());
        if (1..5).contains(&number) {
            std::fs::copy(kept.join(format!("l{number}.obd")), &file)?;
            continue;
        }
        let disk: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(ByteLen::mib(4)));
        disk.write_at(ByteOffset::new(u64::from(number) * 70_000), &[number + 1; 9000])?;
        let sealing = Sealing { uuid: Uuid::from_bytes([number + 1; 16]), ..Sealing::default() };
        pack("memory", &disk, std::fs::File::create(&file)?, &sealing)?;
    }
    Ok(files)
}

/// What the layers hold, read without a pool.
fn content(files: &[PathBuf]) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let open = |file: &PathBuf| Layer::open(Input::open(file)?, &OpenOptions::default());
    let stack = ReadOnly(Stack::new(files.iter().map(open).collect::<Result<_, _>>()?)?);
    bytes_of(&stack)
}

fn bytes_of(disk: &dyn BlockDevice) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let mut bytes = vec![0xee; usize::try_from(disk.size().get())?];
    disk.read_at(ByteOffset::ZERO, &mut bytes)?;
    Ok(bytes)
}

/// A pool with disk `base` on the layers.
fn pool_on(folder: &Path, files: &[PathBuf]) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let path = folder.join("disks.pool");
    drop(Pool::create_file(&path, ByteLen::mib(256), &options())?);
    let store = Store::open(&path, &Start::new(["/nonexistent/kiln"]))?;
    let base = LayeredBase::of_files(files)?;
    let request = Request::ImportLazy { name: "base".into(), image: "seven".into(), base };
    let reply = store.ask(request)?;
    assert_eq!(reply, Reply::Copied { size: 4 << 20, source_size: 4 << 20, written: 0 });
    Ok(path)
}

#[test]
fn seven_layers_are_read_cloned_and_written_above_without_being_copied() -> Outcome {
    let folder = tempfile::tempdir()?;
    let files = seven(folder.path())?;
    let path = pool_on(folder.path(), &files)?;
    let whole = content(&files)?;
    let pool = Pool::open_file(&path, &options())?;
    assert!(bytes_of(&pool.open_disk("base")?)? == whole);
    pool.snapshot("base", "ready")?;
    pool.clone_disk("base", "ready", "vm", &DiskOptions::default())?;
    let disk = pool.open_disk("vm")?;
    let mut wanted = whole.clone();
    disk.write_at(ByteOffset::new(350_001), &[1; 777])?;
    wanted[350_001..350_778].fill(1);
    disk.write_zeroes(ByteOffset::new(1 << 20), ByteLen::mib(1), false)?;
    wanted[1 << 20..2 << 20].fill(0);
    disk.flush()?;
    assert!(bytes_of(&disk)? == wanted);
    drop((disk, pool));
    let pool = Pool::open_file(&path, &options())?;
    assert!(bytes_of(&pool.open_disk("vm")?)? == wanted);
    assert!(bytes_of(&pool.open_disk("base")?)? == whole);
    assert!(pool.stat("vm")?.referenced <= ByteLen::kib(8));
    let report = pool.verify(true)?;
    assert!(report.is_clean(), "{report:?}");
    Ok(())
}

#[test]
fn a_layer_that_became_another_is_refused_by_its_ends() -> Outcome {
    let folder = tempfile::tempdir()?;
    let files = seven(folder.path())?;
    let path = pool_on(folder.path(), &files)?;
    // Same size, same UUID, same index: one block has other bytes.
    let mut bytes = std::fs::read(&files[6])?;
    let at = bytes.windows(64).position(|bytes| *bytes == [7; 64]).ok_or("it is there")?;
    bytes[at] = 5;
    std::fs::write(&files[6], bytes)?;
    let pool = Pool::open_file(&path, &options())?;
    let refused = pool.open_disk("base")?.read_at(ByteOffset::ZERO, &mut [0; 512]);
    let Err(DeviceError::Io { source, .. }) = refused else { panic!("{refused:?}") };
    assert!(source.to_string().contains("\"seven\": it is another image"), "{source}");
    Ok(())
}

#[test]
fn a_base_is_described_in_words_that_read_back() -> Outcome {
    let folder = tempfile::tempdir()?;
    let files = seven(folder.path())?;
    let base = LayeredBase::of_files(&files)?;
    let request = Request::ImportLazy { name: "n".into(), image: "i".into(), base };
    let text = serde_json::to_string(&request)?;
    assert_eq!(serde_json::from_str::<Request>(&text)?, request);
    assert!(text.contains("l6.obd"), "{text}");
    assert!(LayeredBase::of_files(&[folder.path().join("gone")]).is_err());
    Ok(())
}
