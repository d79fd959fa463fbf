//! Looking after the store: listing, inspecting, removing.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::lock::{self, Lock};
use super::{Description, ImageError, ImageStore, Kind, archives, failed};
use crate::ext2::Plan;
use crate::newc::Reader;

/// One image of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    /// Its key, in hexadecimal.
    pub key: String,
    /// What it is.
    pub kind: Kind,
    /// Its length.
    pub bytes: u64,
    /// When it was last built or found.
    pub used: SystemTime,
    /// What it is, if that can still be read.
    pub about: Option<Description>,
}

/// What to keep when pruning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PruneLimits {
    /// Images not used for longer than this are removed.
    pub max_age: Option<Duration>,
    /// The least recently used images are removed until the rest takes no more than this.
    pub max_bytes: Option<u64>,
    /// Only say what would be removed.
    pub dry_run: bool,
}

/// What pruning did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Images that are gone, or would be.
    pub removed: Vec<StoredImage>,
    /// Images that should have gone and are in use.
    pub in_use: Vec<StoredImage>,
}

impl ImageStore {
    /// All images, the most recently used first.
    pub fn list(&self) -> Result<Vec<StoredImage>, ImageError> {
        let mut images = Vec::new();
        for (name, path) in self.names("images")? {
            let Some((key, ending)) = name.split_once('.') else { continue };
            let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.extension() == ending) else {
                continue;
            };
            // Gone since it was listed.
            let Ok(meta) = fs::metadata(&path) else { continue };
            images.push(StoredImage {
                key: key.to_owned(),
                kind,
                bytes: meta.len(),
                used: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                about: self.description(key),
            });
        }
        images.sort_by(|one, other| other.used.cmp(&one.used).then(one.key.cmp(&other.key)));
        Ok(images)
    }

    /// The one image whose key starts with `prefix`.
    pub fn one(&self, prefix: &str) -> Result<StoredImage, ImageError> {
        let mut images = self.list()?;
        images.retain(|image| image.key.starts_with(prefix));
        match (images.pop(), images.len()) {
            (Some(image), 0) if !prefix.is_empty() => Ok(image),
            (last, others) => Err(ImageError::NoSuchImage {
                wanted: prefix.chars().take(80).collect(),
                found: others + usize::from(last.is_some()),
            }),
        }
    }

    /// The one image whose key starts with `prefix` as the plan of a root disk, if it is one.
    pub fn root_plan(&self, prefix: &str) -> Result<Option<Plan>, ImageError> {
        let image = self.one(prefix)?;
        match image.kind {
            Kind::Root => Ok(Some(Plan::load(&self.image_path(&image.key, image.kind))?)),
            Kind::Initramfs => Ok(None),
        }
    }

    /// Where the one image whose key starts with `prefix` is, as it is stored.
    pub fn place(&self, prefix: &str) -> Result<PathBuf, ImageError> {
        let image = self.one(prefix)?;
        Ok(self.image_path(&image.key, image.kind))
    }

    /// The one image whose key starts with `prefix`, to read its members; an initramfs, that is.
    pub fn inspect(&self, prefix: &str) -> Result<(StoredImage, Reader<File>), ImageError> {
        let image = self.one(prefix)?;
        let path = self.image_path(&image.key, image.kind);
        let file = File::open(&path).map_err(failed("open", &path))?;
        let reader = Reader::new(file)
            .map_err(|error| failed("read", &path)(std::io::Error::other(error)))?;
        Ok((image, reader))
    }

    /// Removes the one image whose key starts with `prefix`, unless it is in use.
    pub fn remove(&self, prefix: &str) -> Result<StoredImage, ImageError> {
        let image = self.one(prefix)?;
        if self.remove_image(&image)? {
            Ok(image)
        } else {
            Err(ImageError::InUse { key: image.key })
        }
    }

    /// Removes images beyond the limits, and what killed builders and images long gone left behind.
    pub fn prune(&self, limits: &PruneLimits) -> Result<Pruned, ImageError> {
        let now = SystemTime::now();
        let mut pruned = Pruned::default();
        let mut kept = 0u64;
        for image in self.list()? {
            let age = now.duration_since(image.used).unwrap_or_default();
            let too_old = limits.max_age.is_some_and(|limit| age > limit);
            let total = kept.saturating_add(image.bytes);
            if !too_old && limits.max_bytes.is_none_or(|limit| total <= limit) {
                kept = total;
            } else if limits.dry_run || self.remove_image(&image)? {
                pruned.removed.push(image);
            } else {
                kept = total;
                pruned.in_use.push(image);
            }
        }
        if !limits.dry_run {
            self.sweep(now)?;
        }
        Ok(pruned)
    }

    fn remove_image(&self, image: &StoredImage) -> Result<bool, ImageError> {
        let key = &image.key;
        let path = self.image_path(key, image.kind);
        // Who builds this very image publishes its description first: that must not be taken for the old one's.
        self.make_folders()?;
        let lock_path = self.folder.join("locks").join(key);
        let Some(_lock) = Lock::try_now(&lock_path).map_err(failed("lock", &lock_path))? else {
            return Ok(false);
        };
        let gone = lock::remove_unless_leased(&path).map_err(failed("remove", &path))?;
        if gone {
            // Without the image it means nothing; the next build writes it again.
            let _ = fs::remove_file(self.description_path(key));
        }
        Ok(gone)
    }

    /// Removes files nobody needs: partial images whose builder is gone, memos that lead nowhere.
    fn sweep(&self, now: SystemTime) -> Result<(), ImageError> {
        const AN_HOUR: Duration = Duration::from_secs(3600);
        for (name, path) in self.names("images")? {
            if name.ends_with(".partial") {
                // Image and description both: whoever builds them holds the key's lock.
                let key = name.split('.').next().unwrap_or_default();
                let lock_path = self.folder.join("locks").join(key);
                let lock = Lock::try_now(&lock_path).map_err(failed("lock", &lock_path))?;
                if lock.is_some() {
                    let _ = fs::remove_file(&path);
                }
            }
        }
        self.sweep_archives()?;
        for (name, path) in self.names("locks")? {
            if !self.holds(&name)
                && let Some(_lock) = Lock::try_now(&path).map_err(failed("lock", &path))?
            {
                let _ = fs::remove_file(&path);
            }
        }
        for (_, path) in self.names("memos")? {
            let leads = fs::read(&path).ok().and_then(|memo| {
                let key = memo.split(|&byte| byte == b'\n').nth(1)?.to_vec();
                Some(self.holds(&String::from_utf8(key).ok()?))
            });
            let old = fs::metadata(&path)
                .and_then(|meta| meta.modified())
                .is_ok_and(|written| now.duration_since(written).unwrap_or_default() > AN_HOUR);
            if leads != Some(true) && old {
                let _ = fs::remove_file(&path);
            }
        }
        Ok(())
    }

    /// Removes unpacked archives that no image has files of, unless somebody is about to build one.
    fn sweep_archives(&self) -> Result<(), ImageError> {
        let about = self.list()?.into_iter().filter_map(|image| image.about);
        let needed: HashSet<String> = about.flat_map(|about| about.archives).collect();
        for (name, path) in self.names(archives::FOLDER)? {
            let key = name.split('.').next().unwrap_or_default();
            if name.ends_with(archives::ENDING) {
                if !needed.contains(key) {
                    lock::remove_unless_leased(&path).map_err(failed("remove", &path))?;
                }
                continue;
            }
            // One being unpacked, or left over by who was killed meanwhile.
            let lock_path = self.folder.join("locks").join(key);
            let lock = Lock::try_now(&lock_path).map_err(failed("lock", &lock_path))?;
            if lock.is_some() {
                let _ = fs::remove_file(&path);
            }
        }
        Ok(())
    }

    /// Whether there is an image with a key, of any kind.
    fn holds(&self, key: &str) -> bool {
        Kind::ALL.into_iter().any(|kind| self.image_path(key, kind).exists())
    }

    /// The names in one of the store's folders, sorted. Names that are no text are not ours.
    fn names(&self, folder: &str) -> Result<Vec<(String, std::path::PathBuf)>, ImageError> {
        let folder = self.folder.join(folder);
        let list = |folder: &Path| -> std::io::Result<Vec<_>> {
            let mut names = Vec::new();
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                if let Ok(name) = entry.file_name().into_string() {
                    names.push((name, entry.path()));
                }
            }
            names.sort();
            Ok(names)
        };
        match list(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            listed => listed.map_err(failed("list", &folder)),
        }
    }
}
