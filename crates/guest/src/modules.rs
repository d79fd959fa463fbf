//! Loading kernel modules with all they need, from the image's `/usr/lib/modules/RELEASE`.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use kiln_model::module_index::{IndexText, ModuleIndex, Resolution, module_name};
use kiln_model::protocol::ErrorKind;
use rustix::io::Errno;
use rustix::system::{delete_module, finit_module, uname};

use crate::cmdline::Cmdline;
use crate::console::say;

/// The kernel decompresses the file itself (since 5.17, where it was built with that ability).
const MODULE_INIT_COMPRESSED_FILE: i32 = 4;

/// Where an initrd has the modules that lead to a root disk, and the list of them in the order of loading.
const DRIVERS: &str = "/drivers";
const DRIVERS_ORDER: &str = "/drivers/order";

/// Why a module was not loaded: what kind of no, and for a person.
#[derive(Debug)]
pub(crate) struct ModuleTrouble {
    pub(crate) kind: ErrorKind,
    pub(crate) text: String,
}

/// The index files of the running kernel's module folder.
struct Folder {
    path: PathBuf,
    texts: Vec<String>,
    builtin_modinfo: Vec<u8>,
}

const INDEX_FILES: [&str; 5] =
    ["modules.dep", "modules.alias", "modules.softdep", "modules.weakdep", "modules.builtin"];

impl Folder {
    fn read() -> Result<Folder, ModuleTrouble> {
        let release = uname().release().to_string_lossy().into_owned();
        let path = ["/usr/lib/modules", "/lib/modules"]
            .map(|root| Path::new(root).join(&release))
            .into_iter()
            .find(|path| path.join("modules.dep").exists())
            .ok_or_else(|| ModuleTrouble {
                kind: ErrorKind::NotFound,
                text: format!("the image has no modules for kernel {release}"),
            })?;
        let texts = INDEX_FILES
            .iter()
            .map(|name| {
                let bytes = fs::read(path.join(name)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).into_owned()
            })
            .collect();
        let builtin_modinfo = fs::read(path.join("modules.builtin.modinfo")).unwrap_or_default();
        Ok(Folder { path, texts, builtin_modinfo })
    }

    fn index(&self) -> Result<ModuleIndex<'_>, ModuleTrouble> {
        let text = |at: usize| self.texts.get(at).map_or("", String::as_str);
        ModuleIndex::parse(&IndexText {
            dep: text(0),
            alias: text(1),
            softdep: text(2),
            weakdep: text(3),
            builtin: text(4),
            builtin_modinfo: &self.builtin_modinfo,
        })
        .map_err(|error| failed(error.to_string()))
    }
}

fn failed(text: String) -> ModuleTrouble {
    ModuleTrouble { kind: ErrorKind::Failed, text }
}

/// Loads modules by name or alias and returns how many files the kernel took. `parameters` go to the
/// modules named, on top of what the kernel's command line has for each.
pub(crate) fn load(
    names: &[&str],
    parameters: &str,
    cmdline: &Cmdline,
) -> Result<u64, ModuleTrouble> {
    // What is loaded already needs neither index nor file.
    let names: Vec<&str> = names.iter().copied().filter(|name| !is_loaded(name)).collect();
    if names.is_empty() {
        return Ok(0);
    }
    let folder = Folder::read()?;
    let index = folder.index()?;
    let mut seen = HashSet::new();
    let mut loaded = 0;
    for name in names {
        let paths = match index.resolve(name) {
            Resolution::BuiltIn => continue,
            Resolution::Modules(paths) => paths,
            Resolution::Unknown => {
                return Err(ModuleTrouble {
                    kind: ErrorKind::NotFound,
                    text: format!(
                        "no module named {name} in {}; add it to the image",
                        folder.path.display()
                    ),
                });
            }
        };
        for path in paths {
            let mut order = Vec::new();
            index.plan(path, &mut seen, &mut order).map_err(|e| failed(e.to_string()))?;
            for file in order {
                let own = if file == path { parameters } else { "" };
                loaded += u64::from(insert(&folder.path.join(file), own, cmdline)?);
            }
        }
    }
    Ok(loaded)
}

/// Loads what the initrd lists, in its order; an initrd without such a list has nothing to load.
pub(crate) fn load_drivers(cmdline: &Cmdline) -> Result<(), ModuleTrouble> {
    let Ok(order) = fs::read_to_string(DRIVERS_ORDER) else { return Ok(()) };
    for name in order.lines() {
        insert(&Path::new(DRIVERS).join(name), "", cmdline)?;
    }
    Ok(())
}

/// Whether the kernel holds a module of this name, loaded or built in.
pub(crate) fn is_loaded(name: &str) -> bool {
    // A module that is still initialising is there but of no use yet.
    let folder = Path::new("/sys/module").join(&*module_name(name));
    match fs::read_to_string(folder.join("initstate")) {
        Ok(state) => state.trim() == "live",
        Err(_) => folder.is_dir() && !name.contains('/'),
    }
}

fn insert(file: &Path, parameters: &str, cmdline: &Cmdline) -> Result<bool, ModuleTrouble> {
    let name = module_name(file.to_str().unwrap_or_default()).into_owned();
    if is_loaded(&name) {
        return Ok(false);
    }
    let opened = File::open(file)
        .map_err(|error| failed(format!("cannot open module {}: {error}", file.display())))?;
    let mut all = cmdline.module_parameters(&name);
    if !parameters.is_empty() {
        all = format!("{all} {parameters}");
    }
    let parameters = CString::new(all.trim()).unwrap_or_default();
    let is_plain = file.extension().is_some_and(|extension| extension == "ko");
    let flags = if is_plain { 0 } else { MODULE_INIT_COMPRESSED_FILE };
    match finit_module(&opened, &parameters, flags) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(error) if !is_plain && matches!(error, Errno::INVAL | Errno::OPNOTSUPP) => {
            Err(failed(format!(
                "cannot load module {}: this kernel does not unpack compressed modules ({error}); \
                 put it into the image as plain .ko",
                file.display()
            )))
        }
        Err(Errno::NOENT) => Err(failed(format!(
            "cannot load module {}: it wants a symbol that is not there (the console says which)",
            file.display()
        ))),
        Err(error) => Err(failed(format!("cannot load module {}: {error}", file.display()))),
    }
}

/// The applet: `modprobe [-q] [-a] [-r] [--] NAME... [PARAMETER=VALUE...]`. Returns the exit status.
pub(crate) fn modprobe(arguments: &[String]) -> i32 {
    let mut quiet = false;
    let mut remove = false;
    let mut words = Vec::new();
    for argument in arguments {
        match argument.as_str() {
            "-q" | "--quiet" => quiet = true,
            "-r" | "--remove" => remove = true,
            option if option.starts_with('-') => {}
            word => words.push(word),
        }
    }
    let (parameters, names): (Vec<&str>, Vec<&str>) =
        words.into_iter().partition(|word| word.contains('='));
    let done = if remove {
        unload(&names)
    } else {
        load(&names, &parameters.join(" "), &Cmdline::read()).map(|_| ())
    };
    match done {
        Ok(()) => 0,
        Err(ModuleTrouble { kind: ErrorKind::NotFound, .. }) if quiet => 1,
        Err(trouble) => {
            say!("modprobe: {}", trouble.text);
            1
        }
    }
}

fn unload(names: &[&str]) -> Result<(), ModuleTrouble> {
    const O_NONBLOCK: i32 = 0o4000; // fail rather than wait for the last user
    for name in names {
        let name = module_name(name).into_owned();
        let as_c = CString::new(name.as_str()).unwrap_or_default();
        delete_module(&as_c, O_NONBLOCK)
            .map_err(|error| failed(format!("cannot unload module {name}: {error}")))?;
    }
    Ok(())
}
