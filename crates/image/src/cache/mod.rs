//! The image store: every image is built once and found again by what it holds.
//!
//! ```text
//! images/KEY.cpio    an initramfs; its modification time is when it was last used
//! images/KEY.root    the plan of a root disk, likewise
//! images/KEY.json    what it is, for people
//! images/KEY.partial an image being built, or left over by a builder that was killed
//! memos/REQUEST      which files a request looked at, and the key that led to
//! archives/KEY.tar   an archive that root disks have files of, unpacked (KEY is the archive's)
//! locks/KEY          held by the one who builds or unpacks it
//! ```
//!
//! The key is a digest of the resolved inventory, the kernel's identity and the format. An image is
//! written to its partial file, synced, and renamed: what has its name is whole, also after a power cut.
//! A digest of its bytes is in its description, for [`ImageStore::check`]; finding an image reads none of them.
//! Description and memo are not synced; a damaged one is the same as none. Anything here may be deleted
//! at any time and is built again when it is needed; Kiln itself removes no image that has a [`Lease`].

mod archives;
mod digest;
mod form;
mod lock;
mod memo;
mod request;
mod upkeep;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use kiln_block::ByteLen;
use serde::{Deserialize, Serialize};

pub use form::{Form, Kind, LARGEST_INITRAMFS};
pub use lock::Lease;
pub use request::{GuestExecutable, ImageRequest, modified_from_environment};
pub use upkeep::{PruneLimits, Pruned, StoredImage};

use crate::closure::ClosureError;
use crate::ext2::{self, Ext2Error, StoredPlanError};
use crate::initramfs::{self, InitramfsError, Written};
use crate::manifest::ManifestError;
use crate::modules::ModuleError;
use lock::Lock;
use request::Resolved;

/// How often a build is tried again when files change under it.
const ATTEMPTS: usize = 3;

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The manifest makes no sense.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// What it asks for cannot be had.
    #[error(transparent)]
    Closure(#[from] ClosureError),
    /// A kernel module cannot be had.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// It could not be written.
    #[error(transparent)]
    Build(#[from] InitramfsError),
    /// It cannot be a root disk.
    #[error("cannot plan the root disk")]
    Root(#[from] Ext2Error),
    /// The plan of the root disk could not be kept.
    #[error(transparent)]
    Plan(#[from] StoredPlanError),
    /// The store's folder made trouble.
    #[error("cannot {act} {path} in the image store", path = path.display())]
    Store {
        /// What was tried.
        act: &'static str,
        /// With what.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// No image, or more than one, has a key that starts so.
    #[error(
        "{found} images have a key that starts with {wanted:?}; `kiln image ls` lists all keys"
    )]
    NoSuchImage {
        /// What was asked for.
        wanted: String,
        /// How many there are.
        found: usize,
    },
    /// Somebody uses it.
    #[error("image {key} is in use; it can be removed when the run that uses it has ended")]
    InUse {
        /// Which.
        key: String,
    },
}

/// A folder of images.
#[derive(Clone, Debug)]
pub struct ImageStore {
    folder: PathBuf,
}

/// An image that can be booted.
#[derive(Debug)]
pub struct BuiltImage {
    /// Where it is. It stays there at least as long as `lease` lives, unless somebody outside of
    /// Kiln removes it.
    pub path: PathBuf,
    /// Its key in the store, in hexadecimal.
    pub key: String,
    /// What it is.
    pub kind: Kind,
    /// Whether it was there already.
    pub cached: bool,
    /// Its length.
    pub bytes: u64,
    /// Of a root disk: how large the disk is.
    pub disk: Option<ByteLen>,
    /// How long finding or building it took.
    pub took: Duration,
    /// Optional things that were left out, and the like.
    pub notes: Vec<String>,
    /// Keeps it from being pruned.
    pub lease: Lease,
}

/// What [`ImageStore::get_or_build`] would give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeseenImage {
    /// Its key in the store, in hexadecimal.
    pub key: String,
    /// What it is.
    pub kind: Kind,
    /// Whether it is there already.
    pub cached: bool,
    /// Optional things that are left out, and the like.
    pub notes: Vec<String>,
}

/// What is kept beside an image for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The manifest's name.
    pub manifest: String,
    /// The kernel's release.
    pub kernel: String,
    /// Seconds since 1970.
    pub built_at: u64,
    /// How many entries it has.
    pub entries: u64,
    /// Its length, by which a torn file is noticed.
    pub bytes: u64,
    /// A blake3 of its bytes, in hexadecimal; images of earlier versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Of a root disk: how many bytes the disk has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
    /// What was left out, and the like.
    pub notes: Vec<String>,
    /// Of a root disk: keys of the unpacked archives that it has files of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub archives: Vec<String>,
}

impl ImageStore {
    /// Opens the store in a folder, which is made if it is not there.
    pub fn open(folder: &Path) -> Result<ImageStore, ImageError> {
        let store = ImageStore { folder: folder.to_owned() };
        store.make_folders()?;
        Ok(store)
    }

    /// Finds the image that a request asks for, or builds it. Of several that ask at the same time,
    /// in this process or others, one builds and the others wait for it.
    pub fn get_or_build(&self, request: &ImageRequest) -> Result<BuiltImage, ImageError> {
        let started = Instant::now();
        let memo = self.folder.join("memos").join(&request.digest().to_hex().as_str()[..32]);
        if let Some(key) = memo::recall(&memo)
            && let Some(image) = self.find(&key, started)?
        {
            return Ok(image);
        }
        // Somebody may have removed the whole store since it was opened.
        self.make_folders()?;
        let mut attempt = 1;
        loop {
            let resolved = request.resolve_settled(Some(&self.folder))?;
            let key = request.key(&resolved).to_hex().as_str()[..64].to_owned();
            match self.find_or_build(request, &resolved, &key, started) {
                Ok(image) => {
                    // Without it the next request resolves again, and finds this image.
                    let _ = self.publish(&memo, &memo::write(&key, &resolved.inputs));
                    return Ok(image);
                }
                Err(
                    ImageError::Build(InitramfsError::Changed { .. })
                    | ImageError::Root(Ext2Error::Changed { .. }),
                ) if attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Says which image a request asks for and whether it is there, and builds nothing.
    pub fn foresee(&self, request: &ImageRequest) -> Result<ForeseenImage, ImageError> {
        let resolved = request.resolve(Some(&self.folder))?;
        let key = request.key(&resolved).to_hex().as_str()[..64].to_owned();
        let Resolved { inventory, kind, .. } = resolved;
        let there = fs::metadata(self.image_path(&key, kind)).ok();
        let cached =
            there.zip(self.description(&key)).is_some_and(|(m, about)| m.len() == about.bytes);
        Ok(ForeseenImage { key, kind, cached, notes: inventory.notes })
    }

    /// Where the image with a key is, or would be.
    pub(super) fn image_path(&self, key: &str, kind: Kind) -> PathBuf {
        self.folder.join("images").join(format!("{key}.{}", kind.extension()))
    }

    /// Where its description is.
    pub(super) fn description_path(&self, key: &str) -> PathBuf {
        self.folder.join("images").join(format!("{key}.json"))
    }

    fn find_or_build(
        &self,
        request: &ImageRequest,
        resolved: &Resolved,
        key: &str,
        started: Instant,
    ) -> Result<BuiltImage, ImageError> {
        if let Some(image) = self.find(key, started)? {
            return Ok(image);
        }
        let lock_path = self.folder.join("locks").join(key);
        let _lock = Lock::wait(&lock_path).map_err(failed("lock", &lock_path))?;
        if let Some(image) = self.find(key, started)? {
            return Ok(image);
        }
        self.build(request, resolved, key)?;
        let image = self.find(key, started)?.ok_or_else(|| ImageError::Store {
            act: "find again",
            path: self.image_path(key, resolved.kind),
            source: io::ErrorKind::NotFound.into(),
        })?;
        Ok(BuiltImage { cached: false, ..image })
    }

    /// The image with a key, if it is there and whole. No two images of different kinds have the same.
    fn find(&self, key: &str, started: Instant) -> Result<Option<BuiltImage>, ImageError> {
        for kind in Kind::ALL {
            if let Some(found) = self.find_kind(key, kind, started)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn find_kind(
        &self,
        key: &str,
        kind: Kind,
        started: Instant,
    ) -> Result<Option<BuiltImage>, ImageError> {
        let path = self.image_path(key, kind);
        let Some(lease) = Lease::take(&path).map_err(failed("open", &path))? else {
            return Ok(None);
        };
        let bytes = lease.len().map_err(failed("look at", &path))?;
        let Some(about) = self.description(key).filter(|about| about.bytes == bytes) else {
            return Ok(None);
        };
        lease.touch();
        Ok(Some(BuiltImage {
            path,
            key: key.to_owned(),
            kind,
            cached: true,
            bytes,
            disk: about.disk.map(ByteLen::new),
            took: started.elapsed(),
            notes: about.notes,
            lease,
        }))
    }

    /// Builds an image under the lock of its key.
    fn build(
        &self,
        request: &ImageRequest,
        resolved: &Resolved,
        key: &str,
    ) -> Result<(), ImageError> {
        let partial = self.folder.join("images").join(format!("{key}.partial"));
        let result = self.build_partial(request, resolved, key, &partial);
        if result.is_err() {
            // Disk full, most likely: what was written so far should not stay.
            let _ = fs::remove_file(&partial);
        }
        result
    }

    fn build_partial(
        &self,
        request: &ImageRequest,
        resolved: &Resolved,
        key: &str,
        partial: &Path,
    ) -> Result<(), ImageError> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        let out = options.open(partial).map_err(failed("create", partial))?;
        let (out, Written { bytes, entries }, disk) = match resolved.kind {
            Kind::Initramfs => {
                let (out, written) = initramfs::write(&resolved.inventory, request.modified, out)?;
                (out, written, None)
            }
            Kind::Root => {
                let plan = plan_root(request, resolved)?;
                plan.store(&out)?;
                let bytes = out.metadata().map_err(failed("look at", partial))?.len();
                let summary = plan.summary();
                let written = Written { bytes, entries: summary.entries };
                (out, written, Some(summary.size.get()))
            }
        };
        out.sync_data().map_err(failed("sync", partial))?;
        let digest = digest::of(&out).map_err(failed("read", partial))?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let about = Description {
            manifest: match request.form {
                Form::Initrd => "the way to root disks".to_owned(),
                _ => request.manifest.name.clone(),
            },
            kernel: request.kernel.release.clone(),
            built_at: now.as_secs(),
            entries,
            bytes,
            digest: Some(digest.to_hex().as_str().to_owned()),
            disk,
            notes: resolved.inventory.notes.clone(),
            archives: match resolved.kind {
                Kind::Root => resolved.archives.iter().map(|(key, _)| key.clone()).collect(),
                Kind::Initramfs => Vec::new(),
            },
        };
        let path = self.image_path(key, resolved.kind);
        let text = serde_json::to_vec_pretty(&about)
            .map_err(|error| failed("describe", &path)(error.into()))?;
        self.publish(&self.description_path(key), &text)?;
        fs::rename(partial, &path).map_err(failed("rename", partial))
    }

    pub(super) fn description(&self, key: &str) -> Option<Description> {
        let text = fs::read(self.description_path(key)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Writes a small file whole or not at all.
    fn publish(&self, path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
        let mut name = path.as_os_str().to_owned();
        let thread = format!("{:?}", std::thread::current().id());
        let thread: String = thread.chars().filter(char::is_ascii_digit).collect();
        name.push(format!(".{}-{thread}.partial", std::process::id()));
        let partial = PathBuf::from(name);
        fs::write(&partial, bytes).map_err(failed("write", &partial))?;
        fs::rename(&partial, path).map_err(failed("rename", &partial))
    }

    fn make_folders(&self) -> Result<(), ImageError> {
        for name in ["images", "memos", "locks", archives::FOLDER] {
            let path = self.folder.join(name);
            fs::create_dir_all(&path).map_err(failed("create", &path))?;
        }
        Ok(())
    }
}

/// The disk that holds what was resolved; nothing of it is read yet.
fn plan_root(request: &ImageRequest, resolved: &Resolved) -> Result<ext2::Plan, Ext2Error> {
    let seconds = i64::from(request.modified);
    let mut tree = ext2::Tree::new();
    tree.add_inventory(&resolved.inventory, ext2::Time { seconds, nanos: 0 })?;
    let options = ext2::Options {
        free: request.form.free(),
        epoch: Some(seconds),
        label: "kiln".to_owned(),
        ..ext2::Options::default()
    };
    ext2::Plan::new(tree, &options)
}

fn failed<'a>(act: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ImageError + 'a {
    move |source| ImageError::Store { act, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
