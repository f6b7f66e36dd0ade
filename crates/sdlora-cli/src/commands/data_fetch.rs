//! `sdlora data fetch`: the files of a data set, from where its authors offer them or from a mirror.

use std::path::{Path, PathBuf};

use sdlora_data::{Access, DatasetEntry, Manifest, ManifestFile, Options, datasets};
use sdlora_fetch::{Downloader, Expected, Mirror, sha256_of};

use crate::UsageError;
use crate::download_bar::DownloadBar;
use crate::output::say;
use crate::shown::shown_path;

#[derive(Debug, clap::Args)]
pub struct Fetch {
    /// Name of the data set, see `sdlora data list`
    name: String,
    /// Folder of the data sets
    #[arg(long, default_value = "datasets")]
    data_dir: PathBuf,
    /// Take the files from here instead: an address or a folder that has them under their own names
    #[arg(long, value_name = "URL|DIR")]
    mirror: Option<String>,
    /// Agree to the terms of use, where a data set has some
    #[arg(long)]
    accept_terms: bool,
    /// Print nothing but errors
    #[arg(long)]
    quiet: bool,
}

impl Fetch {
    /// Downloads what is missing, then opens the data sets that the files make and counts them.
    pub fn run(&self) -> anyhow::Result<()> {
        let mut downloader = Downloader::from_env();
        if let Some(mirror) = &self.mirror {
            downloader = downloader.with_mirror(Mirror::parse(mirror));
        }
        self.run_with(&downloader)
    }

    fn run_with(&self, downloader: &Downloader) -> anyhow::Result<()> {
        let entries = entries(&self.name)?;
        let manifest = entries[0].manifest()?;
        if !self.quiet {
            say!(
                "source   {}\nlicence  {}",
                manifest.source,
                manifest.licence
            );
        }
        self.check_terms(&manifest)?;
        if manifest
            .fetched_files()
            .all(|file| !self.path(&manifest, file).exists())
            && let Some(names) = complete(&entries, &self.data_dir)
        {
            if !self.quiet {
                say!("there    {names} is complete already, unpacked: nothing is fetched");
            }
            return Ok(());
        }
        for file in manifest.fetched_files() {
            let path = self.path(&manifest, file);
            let was_there = path.is_file();
            let mut bar = DownloadBar::new(self.quiet);
            downloader.fetch(&file.url, &path, &expected(file)?, &mut bar)?;
            if self.quiet {
                continue;
            }
            if file.sha256.is_empty() && file.md5.is_empty() {
                say!(
                    "sha256   {} {}, not compared",
                    sha256_of(&path)?,
                    shown_path(&path)
                );
            } else if was_there {
                say!("there    {}", shown_path(&path));
            }
        }
        for entry in entries {
            let dataset = datasets::open(entry.name, &self.data_dir, &Options::none())?;
            if !self.quiet {
                say!("opened   {}", entry.name);
                super::data_description::describe(dataset.as_ref());
            }
        }
        Ok(())
    }

    /// Whether the licence lets a program download the files, and what to do where it does not.
    fn check_terms(&self, manifest: &Manifest) -> anyhow::Result<()> {
        let fetch = &manifest.fetch;
        match fetch.access {
            Access::Open => Ok(()),
            Access::Terms if self.accept_terms => Ok(()),
            Access::Terms => Err(UsageError(format!(
                "data set `{}` ({}) has terms of use: {}; if you agree, repeat the command with `--accept-terms`",
                manifest.name, manifest.source, fetch.why
            ))
            .into()),
            Access::Form | Access::Own => {
                let refusal = UsageError(format!(
                    "data set `{}` is not downloaded by a program: {}",
                    manifest.name, fetch.why
                ));
                Err(anyhow::Error::from(Steps(fetch.steps.clone())).context(refusal))
            }
        }
    }

    fn path(&self, manifest: &Manifest, file: &ManifestFile) -> PathBuf {
        self.data_dir.join(&manifest.folder).join(&file.path)
    }
}

/// What the user does instead, a line each.
#[derive(Debug)]
pub struct Steps(Vec<String>);

impl std::fmt::Display for Steps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("instead")?;
        for (at, step) in self.0.iter().enumerate() {
            write!(f, "\n  {}. {step}", at + 1)?;
        }
        Ok(())
    }
}

impl std::error::Error for Steps {}

/// The data sets of a name: one, or all that are made of the files of a manifest of that name.
pub fn entries(name: &str) -> anyhow::Result<Vec<&'static DatasetEntry>> {
    let mut family = Vec::new();
    for entry in datasets::DATASETS {
        if entry.name != name && entry.manifest()?.name == name {
            family.push(entry);
        }
    }
    match datasets::find(name) {
        Ok(entry) => Ok(vec![entry]),
        Err(error) if family.is_empty() => Err(UsageError(error.to_string()).into()),
        Err(_) => Ok(family),
    }
}

/// The names of the data sets if all can be opened with the numbers of the manifest.
fn complete(entries: &[&DatasetEntry], data_dir: &Path) -> Option<String> {
    let mut names = Vec::new();
    for entry in entries {
        let dataset = datasets::open(entry.name, data_dir, &Options::none()).ok()?;
        let manifest = entry.manifest().ok()?;
        if !manifest
            .set(entry.name)?
            .differences(dataset.as_ref())
            .is_empty()
        {
            return None;
        }
        names.push(entry.name);
    }
    Some(names.join(", "))
}

/// What the manifest knows of a file.
fn expected(file: &ManifestFile) -> anyhow::Result<Expected> {
    let mut expected = Expected::unknown();
    if file.bytes > 0 {
        expected = expected.with_bytes(file.bytes);
    }
    if !file.sha256.is_empty() {
        expected = expected.with_sha256(&file.sha256)?;
    }
    if !file.md5.is_empty() {
        expected = expected.with_md5(&file.md5)?;
    }
    Ok(expected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};

    fn shipped() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets")
    }

    fn fetch(name: &str, data_dir: &Path, mirror: Option<&str>) -> Fetch {
        Fetch {
            name: name.into(),
            data_dir: data_dir.into(),
            mirror: mirror.map(str::to_owned),
            accept_terms: false,
            quiet: true,
        }
    }

    /// Serves the files of a folder on the loopback; the first answer breaks off in the middle.
    fn serve(folder: PathBuf) -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        std::thread::spawn(move || {
            for (n, stream) in listener.incoming().flatten().enumerate() {
                let lines: Vec<String> = BufReader::new(&stream)
                    .lines()
                    .map_while(Result::ok)
                    .take_while(|line| !line.is_empty())
                    .collect();
                let path = lines[0].split(' ').nth(1).unwrap().to_owned();
                let range = lines.iter().find_map(|line| {
                    let line = line.to_ascii_lowercase();
                    let from = line
                        .strip_prefix("range: bytes=")?
                        .strip_suffix('-')?
                        .to_owned();
                    from.parse::<usize>().ok()
                });
                log.lock()
                    .unwrap()
                    .push(format!("{path} {}", range.unwrap_or(0)));
                let body = std::fs::read(folder.join(&path[1..])).unwrap();
                let from = range.unwrap_or(0);
                let head = match range {
                    None => format!("200 OK\r\ncontent-length: {}", body.len()),
                    Some(_) => format!(
                        "206 P\r\ncontent-length: {}\r\ncontent-range: bytes {from}-{}/{}",
                        body.len() - from,
                        body.len() - 1,
                        body.len()
                    ),
                };
                let end = if n == 0 { body.len() / 2 } else { body.len() };
                let mut stream = &stream;
                let _ = write!(stream, "HTTP/1.1 {head}\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(&body[from..end]);
            }
        });
        (url, asked)
    }

    #[test]
    fn a_fetched_data_set_is_verified_and_not_fetched_twice() {
        let dir = tempfile::tempdir().unwrap();
        let (url, asked) = serve(shipped().join("omniglot"));
        let fetch = fetch("omniglot", dir.path(), Some(&url));
        fetch.run().unwrap();
        let zip = dir.path().join("omniglot/images_background.zip");
        assert_eq!(
            std::fs::read(&zip).unwrap(),
            std::fs::read(shipped().join("omniglot/images_background.zip")).unwrap()
        );
        let log = asked.lock().unwrap().clone();
        assert_eq!(log.len(), 3, "{log:?}");
        assert_eq!(log[0], "/images_background.zip 0");
        // It broke in the middle and was continued there.
        assert!(log[1].starts_with("/images_background.zip 42"), "{log:?}");
        fetch.run().unwrap();
        assert_eq!(asked.lock().unwrap().len(), 3);

        // A damaged file is fetched again.
        let mut bytes = std::fs::read(&zip).unwrap();
        bytes[1000] ^= 1;
        std::fs::write(&zip, bytes).unwrap();
        fetch.run().unwrap();
        assert_eq!(asked.lock().unwrap().len(), 4);
    }

    #[test]
    fn a_folder_is_a_mirror_and_another_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mirror = shipped().join("omniglot");
        let name = "omniglot-evaluation";
        fetch(name, dir.path(), mirror.to_str()).run().unwrap();

        let (other, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for file in ["images_background.zip", "images_evaluation.zip"] {
            std::fs::write(other.path().join(file), "x").unwrap();
        }
        let error = fetch(name, dir.path(), other.path().to_str()).run();
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.contains("has 1 bytes instead of 8425668"), "{error}");
        assert!(!dir.path().join("omniglot/images_background.zip").exists());
    }

    #[test]
    fn what_the_licence_forbids_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        // Nothing listens there: a request would fail with another message.
        let nowhere = Some("http://127.0.0.1:1");
        for (name, parts) in [
            (
                "imagenet-subset",
                &["not downloaded", "1. register", "val/<wnid>"][..],
            ),
            ("vtab", &["not downloaded", "terms"]),
            ("folder", &["your own", "--option root="]),
            (
                "tiny-imagenet",
                &["--accept-terms", "non-commercial", "cs231n"],
            ),
            ("domainnet", &["--accept-terms"]),
            ("omniglott", &["there is no data set `omniglott`"]),
        ] {
            let error = fetch(name, dir.path(), nowhere).run().unwrap_err();
            assert!(error.is::<UsageError>(), "{error}");
            let error = format!("{error:#}");
            for part in parts {
                assert!(error.contains(part), "{error}");
            }
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn agreeing_lets_the_download_begin() {
        let (dir, empty) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut fetch = fetch("cub200", dir.path(), empty.path().to_str());
        fetch.accept_terms = true;
        let error = fetch.run().unwrap_err().to_string();
        assert!(error.contains("CUB_200_2011.tgz"), "{error}");
    }

    #[test]
    fn files_that_are_there_are_compared_and_not_fetched() {
        // The shipped archives lie where `fetch` puts them, so they are only compared.
        fetch("omniglot", &shipped(), Some("http://127.0.0.1:1"))
            .run()
            .unwrap();
    }
}
