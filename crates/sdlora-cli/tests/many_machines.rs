//! A suite whose runs are made one by one, by processes that know nothing of each other.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{data, err, out, sdlora};
use serde::Deserialize;

/// The SLURM script and the manifest of the page.
fn of_page(name: &str) -> PathBuf {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/many-machines");
    docs.join(name)
}

/// Two entries, one with a name that a shell would take apart.
fn suite(home: &Path) -> PathBuf {
    let file = home.join("my suite.toml");
    let text = "name = \"own\"\nbase = \"omniglot-10x20\"\nseeds = [1, 2]\n\
        set = [\"stream.n_tasks=2\", \"n_epochs=1\", \"stream.split={ increment = { init_cls = 4, increment = 4 } }\"]\n\
        [[entry]]\nlabel = \"linear (it's $HOME)\"\nset = [\"method={ name = \\\"linear\\\" }\", \"optimizer.lr=0.1\"]\n\
        [[entry]]\nlabel = \"ncm\"\nset = [\"method={ name = \\\"ncm\\\" }\"]\n";
    fs::write(&file, text).unwrap();
    file
}

fn compare(home: &Path, more: &[&str]) -> Output {
    let (suite, data) = (suite(home), data());
    let args = [
        "compare",
        "--suite",
        suite.to_str().unwrap(),
        "--data-dir",
        data.to_str().unwrap(),
    ];
    sdlora(home, &[&args[..], more].concat())
}

/// A shell in `home`, as the program is started there.
fn shell(home: &Path, command: &[&str]) -> Output {
    Command::new(command[0])
        .args(&command[1..])
        .current_dir(home)
        .env("HF_HOME", home)
        .env("HF_HUB_OFFLINE", "1")
        .env("RAYON_NUM_THREADS", "1")
        .output()
        .unwrap()
}

/// The columns of the tables that are no times.
fn table(text: &str) -> Vec<String> {
    let rows = text.lines().filter(|line| line.starts_with("| "));
    rows.map(|line| line.split('|').take(9).collect::<Vec<_>>().join("|"))
        .collect()
}

#[test]
fn a_list_that_two_processes_work_off_gives_the_table_of_one() {
    let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let home = home.path();
    fs::create_dir(home.join("records")).unwrap();
    let set = ["--set", "batch_size = 16"];
    let more = [&["--records", "records/"], &set[..]].concat();
    let list = |more: &[&str]| compare(home, &[more, &["--list"]].concat());
    let found = list(&more);
    let text = out(&found);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(err(&found).contains("4 of 4 runs are missing"));
    let keys: BTreeSet<&str> = lines
        .iter()
        .map(|l| l.rsplit(' ').next().unwrap())
        .collect();
    assert_eq!(keys.len(), 4, "{keys:?}");
    for (key, start) in keys.iter().zip([
        "own/omniglot-10x20/linear-it-s-home/1-",
        "own/omniglot-10x20/linear-it-s-home/2-",
        "own/omniglot-10x20/ncm/1-",
        "own/omniglot-10x20/ncm/2-",
    ]) {
        assert!(key.starts_with(start), "{key}");
    }
    assert!(!home.join("runs").exists());

    // As the page has it.
    fs::write(home.join("runs.txt"), &text).unwrap();
    let by_two = "tr '\\n' '\\0' < runs.txt | xargs -0 -P 2 -n 1 sh -c";
    let page = fs::read_to_string(of_page("../many-machines.md")).unwrap();
    assert!(page.contains(by_two));
    out(&shell(home, &["sh", "-c", by_two]));
    let mut parts = Vec::new();
    for entry in fs::read_dir(home.join("records")).unwrap() {
        let part = fs::read_to_string(entry.unwrap().path()).unwrap();
        assert_eq!(part.lines().count(), 1, "{part}");
        parts.push(part);
    }
    assert_eq!(parts.len(), 4);
    assert_eq!(out(&list(&more)), "");
    // Finished runs are not missing where their folders are, either.
    assert_eq!(out(&list(&set)), "");
    assert_eq!(
        fs::read_dir(home.join("runs/compare/own")).unwrap().count(),
        4
    );

    let expected = table(&out(&compare(other.path(), &set)));
    assert!(
        expected.len() == 3 && expected[1].starts_with("| linear"),
        "{expected:?}"
    );
    let merged = other.path().join("all.jsonl");
    let finished = [
        &["--finished", "--records", merged.to_str().unwrap()],
        &set[..],
    ]
    .concat();
    let empty = tempfile::tempdir().unwrap();
    parts.sort();
    // In either order, and with every line twice.
    let reversed: String = parts.iter().rev().cloned().collect();
    for text in [parts.concat(), reversed.clone(), reversed + &parts.concat()] {
        fs::write(&merged, text).unwrap();
        assert_eq!(table(&out(&compare(empty.path(), &finished))), expected);
    }
    // Another result of the same run.
    let n_parameters = parts[0].split("\"n_parameters\":").nth(1).unwrap();
    let digits: String = n_parameters
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    let wrong = parts[0].replace(
        &format!("\"n_parameters\":{digits},"),
        &format!("\"n_parameters\":{digits}1,"),
    );
    assert_ne!(wrong, parts[0]);
    fs::write(&merged, parts.concat() + &wrong).unwrap();
    let refused = compare(empty.path(), &finished);
    assert_eq!(refused.status.code(), Some(1));
    let message = err(&refused);
    assert!(
        message.contains("line 1 of") && message.contains("line 5 of"),
        "{message}"
    );
}

#[test]
fn a_key_makes_one_run_and_labels_are_chosen_as_before() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let keys = |more: &[&str]| -> Vec<String> {
        let text = out(&compare(home, &[more, &["--list"]].concat()));
        let keys = text
            .lines()
            .map(|line| line.rsplit(' ').next().unwrap().to_owned());
        keys.collect()
    };
    let all = keys(&[]);
    assert_eq!(keys(&["--only", "nc"]), all[2..]);
    assert_eq!(keys(&["--only", &all[1]]), all[1..2]);
    // The key brings its seed, and another recipe has another key.
    let of_seven = keys(&["--seeds", "7", "--only", "ncm"]);
    assert_eq!(keys(&["--only", &of_seven[0]]), of_seven);
    let changed = keys(&["--set", "n_epochs=2"]);
    assert!(changed.iter().all(|key| !all.contains(key)), "{changed:?}");
    let found = compare(home, &["--only", &all[3], "--set", "n_epochs=2"]);
    assert_eq!(found.status.code(), Some(2));
    assert!(err(&found).contains(&changed[3]), "{}", err(&found));
    assert!(!home.join("runs").exists());

    let found = compare(home, &["--only", &all[3], "--records", "own.jsonl"]);
    let text = out(&found);
    assert!(text.contains("| ncm    |    1 |"), "{text}");
    assert_eq!(
        fs::read_to_string(home.join("own.jsonl"))
            .unwrap()
            .lines()
            .count(),
        1
    );
    assert_eq!(keys(&["--records", "own.jsonl"]), all[..3]);
    let nowhere = ["--only", "own/omniglot-10x20/none/1-0123abcd"];
    let found = compare(home, &nowhere);
    assert_eq!(found.status.code(), Some(2));
    assert!(err(&found).contains("--list"), "{}", err(&found));
}

#[test]
fn the_slurm_script_makes_the_run_of_its_element() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let script = of_page("slurm.sh");
    let script = script.to_str().unwrap();
    out(&shell(home, &["bash", "-n", script]));

    // SLURM reads its lines up to the first command.
    let text = fs::read_to_string(script).unwrap();
    let head = text
        .lines()
        .take_while(|line| line.is_empty() || line.starts_with('#'));
    let options: Vec<(&str, &str)> = head
        .filter_map(|line| line.strip_prefix("#SBATCH --"))
        .map(|option| option.split_once('=').unwrap())
        .collect();
    assert_eq!(options.len(), text.matches("\n#SBATCH ").count());
    let known = [
        "job-name",
        "array",
        "ntasks",
        "cpus-per-task",
        "mem",
        "time",
        "signal",
        "output",
    ];
    assert!(
        options.iter().all(|(name, _)| known.contains(name)),
        "{options:?}"
    );

    // A stand-in for `srun`, which starts what stands behind its options.
    let bin = home.join("bin");
    fs::create_dir(&bin).unwrap();
    fs::write(bin.join("srun"), "#!/bin/sh\nshift\nexec \"$@\"\n").unwrap();
    out(&shell(home, &["chmod", "+x", "bin/srun"]));
    fs::write(
        home.join("runs.txt"),
        "echo one\nprintf '%s|' \"$RAYON_NUM_THREADS\" 'a  b'\n",
    )
    .unwrap();
    let element = |idx: &str| {
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        Command::new("bash")
            .arg(script)
            .current_dir(home)
            .env("PATH", path)
            .env("SLURM_ARRAY_TASK_ID", idx)
            .env("SLURM_CPUS_PER_TASK", "3")
            .output()
            .unwrap()
    };
    assert_eq!(out(&element("1")), "one\n");
    assert_eq!(out(&element("2")), "3|a  b|");
    let beyond = element("3");
    assert_eq!(beyond.status.code(), Some(2));
    assert!(err(&beyond).contains("no line 3"));
}

/// The fields of a Job of `batch/v1` that the manifest uses; a misspelt one is unknown here.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Job {
    api_version: String,
    kind: String,
    metadata: Named,
    spec: JobSpec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct JobSpec {
    completion_mode: String,
    completions: u32,
    parallelism: u32,
    backoff_limit_per_index: u32,
    template: Template,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Template {
    spec: PodSpec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PodSpec {
    restart_policy: String,
    termination_grace_period_seconds: u32,
    containers: Vec<Container>,
    volumes: Vec<Volume>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Container {
    name: String,
    image: String,
    image_pull_policy: String,
    working_dir: String,
    command: Vec<String>,
    env: Vec<EnvVar>,
    resources: Resources,
    volume_mounts: Vec<Mount>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvVar {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resources {
    requests: Amounts,
    limits: Amounts,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Amounts {
    cpu: Option<String>,
    memory: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Mount {
    name: String,
    mount_path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Volume {
    name: String,
    persistent_volume_claim: Claim,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Claim {
    claim_name: String,
}

/// A name as Kubernetes wants it: a label of RFC 1123.
fn is_dns_label(name: &str) -> bool {
    let is_in = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty()
        && name.len() <= 63
        && name.chars().all(is_in)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[test]
fn the_manifest_is_an_indexed_job_that_makes_the_run_of_its_index() {
    let text = fs::read_to_string(of_page("kubernetes.json")).unwrap();
    let job: Job = serde_json::from_str(&text).unwrap();
    assert_eq!((&job.api_version[..], &job.kind[..]), ("batch/v1", "Job"));
    let spec = &job.spec;
    assert_eq!(spec.completion_mode, "Indexed");
    assert!(0 < spec.parallelism && spec.parallelism <= spec.completions);
    assert!(spec.backoff_limit_per_index > 0);
    let pod = &spec.template.spec;
    // The limit of an index is allowed with this policy only.
    assert_eq!(pod.restart_policy, "Never");
    assert!(pod.termination_grace_period_seconds >= 60);
    let [container] = &pod.containers[..] else {
        panic!("{} containers", pod.containers.len());
    };
    for name in [&job.metadata.name, &container.name, &pod.volumes[0].name] {
        assert!(is_dns_label(name), "{name}");
    }
    assert!(is_dns_label(
        &pod.volumes[0].persistent_volume_claim.claim_name
    ));
    assert!(container.image.starts_with("sdlora:"));
    assert!(["Always", "IfNotPresent", "Never"].contains(&&container.image_pull_policy[..]));
    let [mount] = &container.volume_mounts[..] else {
        panic!("{} mounts", container.volume_mounts.len());
    };
    assert_eq!(mount.name, pod.volumes[0].name);
    assert_eq!(mount.mount_path, container.working_dir);
    let resources = &container.resources;
    assert_eq!(resources.requests.memory, resources.limits.memory);
    assert!(
        resources
            .limits
            .memory
            .trim_end_matches("Gi")
            .parse::<u32>()
            .is_ok()
    );
    let threads = &container.env[0];
    assert_eq!(threads.name, "RAYON_NUM_THREADS");
    assert_eq!(resources.requests.cpu.as_ref(), Some(&threads.value));
    assert_eq!(resources.limits.cpu, None);

    // Its command, in a folder that stands for the volume.
    let home = tempfile::tempdir().unwrap();
    fs::write(
        home.path().join("runs.txt"),
        "echo zero\nprintf '%s|' 'a  b'\n",
    )
    .unwrap();
    let pod = |idx: &str| {
        Command::new(&container.command[0])
            .args(&container.command[1..])
            .current_dir(home.path())
            .env("JOB_COMPLETION_INDEX", idx)
            .output()
            .unwrap()
    };
    assert_eq!(out(&pod("0")), "zero\n");
    assert_eq!(out(&pod("1")), "a  b|");
    assert!(!pod("2").status.success());
}
