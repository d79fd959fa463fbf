//! Root disks that are written to: in the pool, made once from the plan of the root, and cloned.
//!
//! A scenario's `root = "clone"` gives every machine a clone that goes with it; `kiln shell --persist NAME` boots the
//! disk NAME itself, which starts as a clone when it is not there.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use kiln_block::ByteLen;
use kiln_image::ext2::Plan;
use kiln_model::job::Disk;
use kiln_model::root::{ROOT_SERIAL, RootChoice};
use kiln_model::scenario::{self, DiskStart};
use kiln_store::{NewDisk, Reply, Request, Store, StoreError, Why};

use crate::bases::{BaseError, Bases, READY, named};
use crate::stop::StopToken;

impl Bases<'_> {
    /// The root disk as jobs name it, where it is one that is written to.
    pub(crate) fn settle_root(
        &self,
        say: &mut dyn FnMut(String),
        stop: &StopToken,
    ) -> Result<Option<Disk>, BaseError> {
        if self.persist.is_none() && self.plan.root != RootChoice::Clone {
            return Ok(None);
        }
        // Errors speak of it as of any other disk.
        let serial = ROOT_SERIAL.to_owned();
        let root = scenario::Disk { serial, size: None, start: DiskStart::Empty, line: 1 };
        let failed = |error| self.pool_trouble(&root, error);
        Store::make(self.pool).map_err(failed)?;
        let store = self.access.open(self.pool).map_err(failed)?;
        let disk = |size, base, persistent| {
            Ok(Some(Disk { serial: ROOT_SERIAL.to_owned(), size, base, persistent }))
        };
        let Some(name) = self.persist else {
            let (base, size) = self.root_base(&store, &root, say, stop)?;
            return disk(size, Some(format!("{base}@{READY}")), None);
        };
        match store.ask(Request::Stat { disk: name.to_owned() }) {
            Ok(Reply::Disk(there)) => return disk(there.size, None, Some(name.to_owned())),
            Err(StoreError::Refused(refusal)) if matches!(refusal.why, Why::NoDisk { .. }) => {}
            Ok(_) => {}
            Err(error) => return Err(failed(error)),
        }
        let (base, size) = self.root_base(&store, &root, say, stop)?;
        let clone = Request::Clone {
            disk: base,
            snapshot: READY.to_owned(),
            name: name.to_owned(),
            with: NewDisk::default(),
        };
        store.ask(clone).map_err(failed)?;
        say(format!("the root is disk {name}, which is new"));
        disk(size, None, Some(name.to_owned()))
    }

    /// The disk in the pool that roots start as, made if it is not there, and its size.
    fn root_base(
        &self,
        store: &Store,
        root: &scenario::Disk,
        say: &mut dyn FnMut(String),
        stop: &StopToken,
    ) -> Result<(String, u64), BaseError> {
        let mut digest = blake3::Hasher::new();
        digest.update(b"kiln base: root, 1\n");
        digest.update(self.equipment.image.key.as_bytes());
        let name = named(&format!("root-{}", self.plan.scenario), &digest);
        if let Some(size) = self.size_of(store, root, &name, READY)? {
            return Ok((name, size));
        }
        let _alone = self.lock(root)?;
        // Whoever had the lock before may have made it.
        if let Some(size) = self.size_of(store, root, &name, READY)? {
            return Ok((name, size));
        }
        self.forget_half(store, root, &name)?;
        let began = Instant::now();
        say("writing the root disk into the pool, once".to_owned());
        let file = self.written(&self.equipment.image.path)?;
        self.import_file(store, root, file, "the root disk", &name, stop)?;
        let snap = Request::Snap { disk: name.clone(), snapshot: READY.to_owned() };
        store.ask(snap).map_err(|error| self.pool_trouble(root, error))?;
        let took = began.elapsed().as_secs_f32();
        say(format!("the root starts as {name}@{READY}, made in {took:.1} s"));
        self.forget_old(store, &name);
        let size = self.size_of(store, root, &name, READY)?.unwrap_or_default();
        Ok((name, size))
    }

    /// A nameless file beside the pool that holds the disk of a plan.
    fn written(&self, plan: &Path) -> Result<File, BaseError> {
        fn failed<E: std::error::Error + Send + Sync + 'static>(
            act: &str,
        ) -> impl Fn(E) -> BaseError {
            let act = act.to_owned();
            move |error| BaseError::Host { act: act.clone(), source: std::io::Error::other(error) }
        }
        let plan = Plan::load(plan).map_err(failed("read the plan of the root disk"))?;
        let folder = self.pool.parent().unwrap_or(Path::new("."));
        let file = tempfile::tempfile_in(folder).map_err(failed("make a file beside the pool"))?;
        plan.write(&file).map_err(failed("write the root disk"))?;
        Ok(file)
    }
}

/// How much room a root disk that is written to has beyond what it starts with.
pub(crate) const ROOM: ByteLen = ByteLen::gib(4);
