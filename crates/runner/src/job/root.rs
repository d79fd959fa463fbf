//! The root disk of a machine where it is never written: the plan of a disk, served by this process.
//!
//! Nobody else has to outlive the job for it, and nothing is lost with the job: the machine goes with it, and the disk is
//! made of the host's own files. One of them that changed since the plan was made is an error for its blocks, and the
//! guest's reading of it the host's fault.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use kiln_block::{BlockSource, ByteLen, ByteOffset, DeviceError, Extent, ReadOnly};
use kiln_export::{Export, vhost_user};
use kiln_image::ext2::Plan;
use kiln_model::root::ROOT_SERIAL;

use super::disks::{socket_folder, unique};
use crate::chain::chain;

/// A root disk, for as many machines as a job makes.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    plan: Arc<Plan>,
}

/// A root disk that is served to one machine. Dropping it ends that.
#[derive(Debug)]
pub(crate) struct ServedRoot {
    disk: Arc<ReadOnly<Watched>>,
    server: vhost_user::Server,
}

/// A plan as one machine reads it, and what went wrong with that.
#[derive(Debug)]
struct Watched {
    plan: Arc<Plan>,
    trouble: Mutex<Option<String>>,
}

impl Watched {
    fn note<T>(&self, result: Result<T, DeviceError>) -> Result<T, DeviceError> {
        if let Err(error) = &result {
            let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            // The first is the one that the guest stumbled over.
            trouble.get_or_insert_with(|| match std::error::Error::source(error) {
                Some(source) => chain(source),
                None => chain(error),
            });
        }
        result
    }
}

impl BlockSource for Watched {
    fn size(&self) -> ByteLen {
        BlockSource::size(&*self.plan)
    }

    fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.note(self.plan.read(at, buffer))
    }

    fn extents(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<Extent>, DeviceError> {
        BlockSource::extents(&*self.plan, at, len)
    }
}

impl Root {
    /// Reads the plan of a root disk.
    pub(crate) fn open(plan: &Path) -> Result<Root, String> {
        let plan = Plan::load(plan)
            .map_err(|error| format!("{}; `kiln image prune` and run again", chain(&error)))?;
        Ok(Root { plan: Arc::new(plan) })
    }

    /// Serves it to a machine.
    pub(crate) fn serve(&self) -> Result<ServedRoot, String> {
        let socket = socket_folder()?.join(format!("{}-root.sock", unique()));
        let options = vhost_user::Options { serial: ROOT_SERIAL.to_owned(), ..Default::default() };
        let watched = Watched { plan: Arc::clone(&self.plan), trouble: Mutex::default() };
        let disk = Arc::new(ReadOnly(watched));
        let export = Export::new(Arc::clone(&disk) as Arc<dyn kiln_block::BlockDevice>);
        let server = vhost_user::Server::start(&socket, export, options)
            .map_err(|error| format!("cannot serve the root disk: {}", chain(&error)))?;
        Ok(ServedRoot { disk, server })
    }
}

impl ServedRoot {
    /// Where QEMU finds it.
    pub(crate) fn socket(&self) -> PathBuf {
        self.server.path().to_owned()
    }

    /// Why a request of the guest failed, if one did.
    pub(crate) fn trouble(&self) -> Option<String> {
        let trouble = &self.disk.0.trouble;
        let trouble = trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        Some(format!("the root disk could not be read: {trouble}; the next run sees the new file"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use kiln_block::BlockDevice as _;
    use kiln_image::ext2::{Options, Tree};

    use super::*;

    #[test]
    fn a_file_that_changes_under_a_machine_is_the_hosts_fault_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let (files, plan) = (folder.path().join("files"), folder.path().join("plan"));
        fs::create_dir(&files).unwrap();
        fs::write(files.join("program"), vec![b'p'; 10_000]).unwrap();
        let mut tree = Tree::new();
        tree.add_directory(&files).unwrap();
        let made = Plan::new(tree, &Options::default()).unwrap();
        made.store(&fs::File::create(&plan).unwrap()).unwrap();

        let root = Root::open(&plan).unwrap();
        let served = root.serve().unwrap();
        let mut all = vec![0; usize::try_from(served.disk.size().get()).unwrap()];
        served.disk.read_at(ByteOffset::new(0), &mut all).unwrap();
        assert_eq!(served.trouble(), None);
        fs::write(files.join("program"), vec![b'q'; 10_000]).unwrap();
        assert!(served.disk.read_at(ByteOffset::new(0), &mut all).is_err());
        let told = served.trouble().unwrap();
        assert!(told.contains("program changed since the disk was planned"), "{told}");
        assert_eq!(root.serve().unwrap().trouble(), None, "another machine has not read it");
        let socket = served.socket();
        assert!(socket.exists());
        drop(served);
        assert!(!socket.exists());
    }

    #[test]
    fn a_damaged_plan_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let plan = folder.path().join("plan");
        fs::write(&plan, b"no plan").unwrap();
        let error = Root::open(&plan).unwrap_err();
        assert!(error.contains("damaged") && error.contains("kiln image prune"), "{error}");
    }
}
