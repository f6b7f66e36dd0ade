//! Models of the Hub against a server that answers as the Hub does.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{Asked, Reply, Server, Told, bytes, retry, sum};
use sdlora_fetch::{FetchError, Hub, HubConfig, HubRepo, Silent};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const GIT_SUM: &str = "89abcdef0123456789abcdef0123456789abcdef";
const N: usize = 50_000;

fn repo() -> HubRepo {
    HubRepo::parse("hf:timm/tiny").unwrap()
}

/// Settings as from an environment, with attempts that do not wait.
fn config(cache: &Path, variables: &[(&str, &str)]) -> HubConfig {
    let mut config = HubConfig::from_lookup(|key| match key {
        "HF_HOME" => Some(cache.display().to_string()),
        _ => variables
            .iter()
            .find(|(name, _)| *name == key)
            .map(|(_, value)| (*value).to_owned()),
    });
    config.retry = retry(2);
    config
}

fn listing(files: &[&str]) -> Reply {
    let siblings: Vec<String> = files
        .iter()
        .map(|name| format!("{{\"rfilename\":\"{name}\"}}"))
        .collect();
    Reply::ok(format!(
        "{{\"sha\":\"{COMMIT}\",\"siblings\":[{}]}}",
        siblings.join(",")
    ))
}

/// A small file that lies in git itself.
fn small(asked: &Asked, body: &str) -> Reply {
    Reply::ranged(asked, body.as_bytes())
        .with("etag", &format!("\"{GIT_SUM}\""))
        .with("x-repo-commit", COMMIT)
}

/// What the Hub says of a large file before it leads to where the content is.
fn large(content: &[u8], location: &str) -> Reply {
    Reply::new(302)
        .with("location", location)
        .with("etag", "\"of-the-redirect\"")
        .with("x-linked-etag", &format!("\"{}\"", sum(content)))
        .with("x-linked-size", &content.len().to_string())
}

/// The Hub with one model; large contents come from `cdn`.
fn hub_server(cdn: String) -> Server {
    Server::start(move |asked, _| {
        let path = asked.path.as_str();
        if path.starts_with("/api/models/timm/tiny/revision/") {
            return listing(&[
                "README.md",
                "config.json",
                "model.safetensors",
                "pytorch_model.bin",
            ]);
        }
        match path.rsplit('/').next().unwrap() {
            "config.json" => small(asked, "{}"),
            "model.safetensors" => large(&bytes(N), &format!("{cdn}/x?sig=secret")),
            _ => Reply::new(404).with("x-error-code", "EntryNotFound"),
        }
    })
}

fn cdn() -> Server {
    Server::start(|asked, _| Reply::ranged(asked, &bytes(N)))
}

#[test]
fn a_model_lands_in_the_layout_python_uses() {
    let (home, cdn) = (tempfile::tempdir().unwrap(), cdn());
    let server = hub_server(cdn.url.clone());
    let hub = Hub::new(config(
        home.path(),
        &[("HF_ENDPOINT", &server.url), ("HF_TOKEN", "hf_x")],
    ));
    let mut told = Told::default();
    let snapshot = hub.fetch_model(&repo(), &mut told).unwrap();

    let root = home.path().join("hub/models--timm--tiny");
    assert_eq!(snapshot, root.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(
        fs::read(snapshot.join("model.safetensors")).unwrap(),
        bytes(N)
    );
    assert_eq!(
        fs::read(root.join("blobs").join(sum(&bytes(N)))).unwrap(),
        bytes(N)
    );
    assert!(root.join("blobs").join(GIT_SUM).is_file());
    assert!(!snapshot.join("pytorch_model.bin").exists());
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(snapshot.join("config.json")).unwrap(),
        Path::new("../../blobs").join(GIT_SUM)
    );
    assert_eq!(told.n_done, 2);
    assert_eq!(told.n_bytes, 2 + N as u64);

    // The token is for the Hub; the host that has the contents must not see it.
    for asked in server.asked() {
        assert_eq!(
            asked.header("authorization"),
            Some("Bearer hf_x"),
            "{asked:?}"
        );
    }
    assert!(!cdn.asked().is_empty());
    for asked in cdn.asked() {
        assert_eq!(asked.header("authorization"), None, "{asked:?}");
    }

    // Again: the revision is looked up, nothing is downloaded.
    let (n_before, mut told) = (server.asked().len(), Told::default());
    assert_eq!(hub.fetch_model(&repo(), &mut told).unwrap(), snapshot);
    assert_eq!(
        (server.asked().len(), told),
        (n_before + 1, Told::default())
    );
    // A commit is not even looked up.
    let pinned = HubRepo::parse(&format!("hf:timm/tiny@{COMMIT}")).unwrap();
    assert_eq!(hub.fetch_model(&pinned, &mut Silent).unwrap(), snapshot);
    assert_eq!(server.asked().len(), n_before + 1);
}

#[test]
fn a_broken_content_is_continued_at_the_host_that_has_it() {
    let home = tempfile::tempdir().unwrap();
    let cdn = Server::start(|asked, n| {
        let reply = Reply::ranged(asked, &bytes(N));
        if n == 0 { reply.cut(20_000) } else { reply }
    });
    let server = hub_server(cdn.url.clone());
    let hub = Hub::new(config(home.path(), &[("HF_ENDPOINT", &server.url)]));
    let snapshot = hub.fetch_model(&repo(), &mut Silent).unwrap();
    assert_eq!(
        fs::read(snapshot.join("model.safetensors")).unwrap(),
        bytes(N)
    );
    assert_eq!(cdn.asked()[1].range(), Some(20_000));
}

#[test]
fn a_content_with_another_sum_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let cdn = Server::start(|_, _| Reply::ok(vec![3; N]));
    let server = hub_server(cdn.url.clone());
    let hub = Hub::new(config(home.path(), &[("HF_ENDPOINT", &server.url)]));
    let error = hub.fetch_model(&repo(), &mut Silent).unwrap_err();
    assert!(matches!(error, FetchError::Checksum { .. }), "{error}");
    let blobs = home.path().join("hub/models--timm--tiny/blobs");
    let left: Vec<_> = fs::read_dir(blobs)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, [GIT_SUM]);
}

#[test]
fn a_gated_model_needs_the_token() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(|asked, _| match asked.header("authorization") {
        Some("Bearer hf_right") if asked.path.starts_with("/api/") => {
            listing(&["model.safetensors"])
        }
        Some("Bearer hf_right") => small(asked, "weights"),
        _ => Reply::new(401).with("x-error-code", "RepoNotFound"),
    });
    let endpoint = ("HF_ENDPOINT", server.url.as_str());
    let without = Hub::new(config(home.path(), &[endpoint]));
    let error = without
        .fetch_model(&repo(), &mut Silent)
        .unwrap_err()
        .to_string();
    for part in ["timm/tiny", "HF_TOKEN", "401", "without a token"] {
        assert!(error.contains(part), "{error}");
    }
    let with = Hub::new(config(home.path(), &[endpoint, ("HF_TOKEN", "hf_right")]));
    let snapshot = with.fetch_model(&repo(), &mut Silent).unwrap();
    assert_eq!(
        fs::read(snapshot.join("model.safetensors")).unwrap(),
        b"weights"
    );
}

#[test]
fn what_is_not_there_is_named_with_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    for (code, parts) in [
        (
            "RepoNotFound",
            ["`timm/tiny`", "check the name", "HF_TOKEN"],
        ),
        ("RevisionNotFound", ["`timm/tiny`", "`main`", "leave out"]),
    ] {
        let server = Server::start(move |_, _| Reply::new(404).with("x-error-code", code));
        let hub = Hub::new(config(home.path(), &[("HF_ENDPOINT", &server.url)]));
        let error = hub.fetch_model(&repo(), &mut Silent).unwrap_err();
        assert!(error.is_usage());
        for part in parts {
            assert!(error.to_string().contains(part), "{error}");
        }
        assert_eq!(server.asked().len(), 1);
    }
    let server = Server::start(|_, _| listing(&["tf_model.h5"]));
    let hub = Hub::new(config(home.path(), &[("HF_ENDPOINT", &server.url)]));
    let error = hub
        .fetch_model(&repo(), &mut Silent)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("model.safetensors") && error.contains("timm/tiny"),
        "{error}"
    );
}

#[test]
fn without_network_the_cache_answers_or_says_what_is_missing() {
    let (home, cdn) = (tempfile::tempdir().unwrap(), cdn());
    let server = hub_server(cdn.url.clone());
    let offline = Hub::new(config(
        home.path(),
        &[("HF_ENDPOINT", &server.url), ("HF_HUB_OFFLINE", "1")],
    ));
    let error = offline.fetch_model(&repo(), &mut Silent).unwrap_err();
    assert!(matches!(error, FetchError::Offline { .. }), "{error}");
    for part in ["timm/tiny", "HF_HUB_OFFLINE", home.path().to_str().unwrap()] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert!(server.asked().is_empty());

    let online = Hub::new(config(home.path(), &[("HF_ENDPOINT", &server.url)]));
    let snapshot = online.fetch_model(&repo(), &mut Silent).unwrap();
    let n_before = server.asked().len();
    assert_eq!(offline.fetch_model(&repo(), &mut Silent).unwrap(), snapshot);
    assert_eq!(server.asked().len(), n_before);

    // A Hub that cannot be reached is no reason to stop either.
    let unreachable = Hub::new(config(
        home.path(),
        &[("HF_ENDPOINT", "http://127.0.0.1:1")],
    ));
    assert_eq!(
        unreachable.fetch_model(&repo(), &mut Silent).unwrap(),
        snapshot
    );
    let other = HubRepo::parse("hf:timm/other").unwrap();
    let error = unreachable.fetch_model(&other, &mut Silent).unwrap_err();
    assert!(matches!(error, FetchError::Connection { .. }), "{error}");
}

#[test]
fn an_unfinished_cache_is_not_taken_for_a_model() {
    let home = tempfile::tempdir().unwrap();
    let root = home.path().join("hub/models--timm--tiny");
    fs::create_dir_all(root.join("refs")).unwrap();
    fs::write(root.join("refs/main"), COMMIT).unwrap();
    let snapshot = root.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    let index = r#"{"weight_map":{"a":"s-1.safetensors","b":"s-2.safetensors"}}"#;
    fs::write(snapshot.join("model.safetensors.index.json"), index).unwrap();
    fs::write(snapshot.join("s-1.safetensors"), "1").unwrap();
    let hub = Hub::new(config(home.path(), &[("HF_HUB_OFFLINE", "1")]));
    assert!(hub.fetch_model(&repo(), &mut Silent).is_err());
    fs::write(snapshot.join("s-2.safetensors"), "2").unwrap();
    assert_eq!(hub.fetch_model(&repo(), &mut Silent).unwrap(), snapshot);
}

/// A Hub whose model is spread over files as `index` says.
fn sharded(index: &'static str) -> Server {
    Server::start(move |asked, _| {
        if asked.path.starts_with("/api/") {
            return listing(&["model.safetensors.index.json", "s-1.safetensors"]);
        }
        let name = asked.path.rsplit('/').next().unwrap();
        let body = if name.ends_with(".json") { index } else { name };
        Reply::ranged(asked, body.as_bytes())
            .with("etag", &format!("W/\"{}\"", name.replace('.', "_")))
    })
}

#[test]
fn all_files_of_an_index_are_brought() {
    let home = tempfile::tempdir().unwrap();
    let server = sharded(
        r#"{"weight_map":{"a":"s-1.safetensors","b":"s-2.safetensors","c":"s-1.safetensors"}}"#,
    );
    let hub = Hub::new(config(home.path(), &[("HF_ENDPOINT", &server.url)]));
    let snapshot = hub.fetch_model(&repo(), &mut Silent).unwrap();
    for name in ["s-1.safetensors", "s-2.safetensors"] {
        assert_eq!(fs::read_to_string(snapshot.join(name)).unwrap(), name);
    }
}

#[test]
fn an_index_cannot_write_outside_the_cache() {
    for index in [
        r#"{"weight_map":{"a":"../../../../../evil"}}"#,
        r#"{"weight_map":{"a":"/tmp/evil"}}"#,
        r#"{"weight_map":{"a":"..\\evil"}}"#,
    ] {
        let (home, server) = (tempfile::tempdir().unwrap(), sharded(index));
        let hub = Hub::new(config(home.path(), &[("HF_ENDPOINT", &server.url)]));
        let error = hub.fetch_model(&repo(), &mut Silent).unwrap_err();
        assert!(matches!(error, FetchError::UnsafeName { .. }), "{error}");
        assert!(
            !server
                .asked()
                .iter()
                .any(|asked| asked.path.contains("evil"))
        );
    }
}

#[test]
fn an_etag_or_commit_cannot_name_a_place_outside_the_cache() {
    for bad in ["../../../evil", "", "a/b", "..", "x.incomplete"] {
        let home = tempfile::tempdir().unwrap();
        let server = Server::start(move |asked, _| {
            if asked.path.starts_with("/api/") {
                return listing(&["model.safetensors"]);
            }
            Reply::ranged(asked, b"x").with("etag", &format!("\"{bad}\""))
        });
        let hub = Hub::new(config(home.path(), &[("HF_ENDPOINT", &server.url)]));
        let error = hub.fetch_model(&repo(), &mut Silent).unwrap_err();
        assert!(matches!(error, FetchError::Answer { .. }), "{bad}: {error}");
    }
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(|_, _| Reply::ok(r#"{"sha":"../../evil","siblings":[]}"#));
    let hub = Hub::new(config(home.path(), &[("HF_ENDPOINT", &server.url)]));
    let error = hub.fetch_model(&repo(), &mut Silent).unwrap_err();
    assert!(matches!(error, FetchError::Answer { .. }), "{error}");
}

#[test]
fn a_renamed_model_and_an_endpoint_that_leads_elsewhere_are_followed() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(|asked, _| match asked.path.strip_prefix("/new") {
        None => Reply::new(307).with("location", &format!("/new{}", asked.path)),
        Some(path) if path.starts_with("/api/") => listing(&["model.safetensors"]),
        Some(_) => small(asked, "weights"),
    });
    let to = server.url.clone();
    let elsewhere = Server::start(move |asked, _| {
        Reply::new(302).with("location", &format!("{to}{}", asked.path))
    });
    for (i, url) in [&server.url, &elsewhere.url].into_iter().enumerate() {
        let home = home.path().join(i.to_string());
        let hub = Hub::new(config(&home, &[("HF_ENDPOINT", url), ("HF_TOKEN", "hf_x")]));
        let n_before = server.asked().len();
        let snapshot = hub.fetch_model(&repo(), &mut Silent).unwrap();
        assert_eq!(
            fs::read(snapshot.join("model.safetensors")).unwrap(),
            b"weights"
        );
        let is_home = i == 0;
        for asked in &server.asked()[n_before..] {
            assert_eq!(
                asked.header("authorization").is_some(),
                is_home,
                "{asked:?}"
            );
        }
    }
}

#[test]
fn redirects_in_a_circle_end() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(|asked, _| Reply::new(302).with("location", &asked.path));
    let hub = Hub::new(config(home.path(), &[("HF_ENDPOINT", &server.url)]));
    let error = hub.fetch_model(&repo(), &mut Silent).unwrap_err();
    assert!(error.to_string().contains("redirects"), "{error}");
}

#[test]
fn a_branch_with_a_slash_is_looked_up_and_noted() {
    let home = tempfile::tempdir().unwrap();
    let server = hub_server("http://127.0.0.1:1".into());
    let pr = HubRepo::parse("hf:timm/tiny@refs/pr/1").unwrap();
    let hub = Hub::new(config(home.path(), &[("HF_ENDPOINT", &server.url)]));
    assert!(hub.fetch_model(&pr, &mut Silent).is_err());
    assert_eq!(
        server.asked()[0].path,
        "/api/models/timm/tiny/revision/refs%2Fpr%2F1"
    );
}
