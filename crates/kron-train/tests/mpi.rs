//! `mpirun kron-train train`: the bits of one process, and an end of the whole job when one rank fails, is killed, is
//! silent, or runs another program.
#![cfg(feature = "mpi")]

mod common;

use std::fs::{copy, read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::data;

const PROGRAM: &str = env!("CARGO_BIN_EXE_kron-train");
/// More than any job here takes.
const LIMIT: Duration = Duration::from_secs(100);

/// Job of an `mpirun`, for a container's root and for more ranks than processors.
fn mpirun() -> Command {
    let mut command = Command::new("mpirun");
    for name in [
        "ALLOW_RUN_AS_ROOT",
        "ALLOW_RUN_AS_ROOT_CONFIRM",
        "MCA_rmaps_base_oversubscribe",
        "MCA_mpi_yield_when_idle",
    ] {
        command.env(format!("OMPI_{name}"), "1");
    }
    command
}

/// Arguments of a run of twelve steps, each of four micro-batches, with some more or in another way.
fn arguments(out: &Path, more: &[&str]) -> Vec<String> {
    let path = |path: PathBuf| path.to_str().expect("UTF-8").to_owned();
    let options = "--task classify --limit-train 48 --limit-eval 28 --max-len 48 --batch 8 --micro-batch 2 --epochs 2 \
                   --dropout 0.1 --lr 5e-3 --save-every 1 --rank-timeout 20";
    let mut all = vec!["train".to_owned()];
    all.extend(options.split(' ').map(str::to_owned));
    for (name, value) in [
        ("--model", data("stories260K.bin")),
        ("--train", data("snips.train.jsonl")),
        ("--validation", data("snips.test.jsonl")),
        ("--out", out.into()),
    ] {
        all.extend([name.to_owned(), path(value)]);
    }
    for name in more.iter().filter(|name| name.starts_with("--")) {
        if let Some(given) = all.iter().position(|one| one == name) {
            all.drain(given..given + 2);
        }
    }
    all.extend(more.iter().map(|one| (*one).to_owned()));
    all
}

/// Waits for a command, and fails if it takes longer than [`LIMIT`].
fn ended(command: &mut Command) -> Output {
    let begin = Instant::now();
    let output = command.output().expect("it starts");
    assert!(begin.elapsed() < LIMIT, "it took {:?}", begin.elapsed());
    output
}

fn run(ranks: usize, out: &Path, more: &[&str]) -> Output {
    ended(mpirun().args(["-n", &ranks.to_string(), PROGRAM]).args(arguments(out, more)))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn refused(output: &Output, says: &str) {
    assert!(!output.status.success());
    assert!(stderr(output).contains(says), "{}\nwithout\n{says}", stderr(output));
}

fn results(out: &Path) -> [Vec<u8>; 2] {
    ["adapter.safetensors", "evaluations.csv"].map(|name| read(out.join(name)).expect("a result"))
}

/// Starts a job of two ranks, waits for its first checkpoint, and returns the processes of its ranks.
fn begun(out: &Path, more: &[&str]) -> (std::process::Child, [String; 2]) {
    let mut command = mpirun();
    command.args(["-n", "2", PROGRAM]).args(arguments(out, more));
    let job = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    let begin = Instant::now();
    while !out.join("checkpoint.safetensors").exists() {
        assert!(begin.elapsed() < LIMIT, "no checkpoint");
        std::thread::sleep(Duration::from_millis(20));
    }
    let tasks = std::fs::read_dir(format!("/proc/{}/task", job.id())).expect("a process");
    let children = tasks.map(|task| read(task.expect("a thread").path().join("children")).expect("children"));
    let children = children.collect::<Vec<_>>().concat();
    let ids: Vec<String> = String::from_utf8_lossy(&children).split_whitespace().map(str::to_owned).collect();
    (job, ids.try_into().expect("two ranks"))
}

fn signal(name: &str, process: &str) {
    let kill = format!("kill {name} {process}");
    assert!(Command::new("sh").args(["-c", &kill]).status().expect("a shell").success());
}

#[test]
fn ranks_of_mpi_give_the_bits_of_one_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let one = ended(Command::new(PROGRAM).args(arguments(&path("one"), &[])));
    assert!(one.status.success(), "{}", stderr(&one));
    for ranks in [1, 2, 4] {
        let out = path(&ranks.to_string());
        let output = run(ranks, &out, &[]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(results(&out), results(&path("one")), "{ranks} ranks");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(said.matches("report: ").count(), 1, "one rank prints: {said}");
    }
    // Matrices in bf16 are in the memory of the first rank alone.
    let rounded = ["--precision", "bf16"];
    for ranks in [1, 3] {
        let output = run(ranks, &path(&format!("bf16-{ranks}")), &rounded);
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert_eq!(results(&path("bf16-1")), results(&path("bf16-3")));
}

#[test]
fn a_killed_rank_ends_the_job_and_another_number_of_ranks_resumes_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let [whole, killed] = ["whole", "killed"].map(|name| folder.path().join(name));
    assert!(run(1, &whole, &[]).status.success());
    let (job, [_, rank]) = begun(&killed, &[]);
    signal("-KILL", &rank);
    let begin = Instant::now();
    let output = job.wait_with_output().expect("it ends");
    assert!(!output.status.success() && begin.elapsed() < Duration::from_secs(20));
    assert!(run(3, &killed, &["--resume"]).status.success());
    assert_eq!(results(&killed), results(&whole));
}

#[test]
fn a_stop_of_the_job_saves_on_the_way() {
    let folder = tempfile::tempdir().expect("a folder");
    let [whole, stopped] = ["whole", "stopped"].map(|name| folder.path().join(name));
    assert!(run(1, &whole, &[]).status.success());
    let (job, [rank, _]) = begun(&stopped, &[]);
    signal("-TERM", &rank);
    let output = job.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(run(2, &stopped, &["--resume"]).status.success());
    assert_eq!(results(&stopped), results(&whole));
}

#[test]
fn a_silent_rank_ends_the_job_within_the_time_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let (job, [_, rank]) = begun(&folder.path().join("run"), &["--rank-timeout", "2"]);
    signal("-STOP", &rank);
    let begin = Instant::now();
    let output = job.wait_with_output().expect("it ends");
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    refused(&output, "is silent for 2 s, the time-out, in exchange");
}

/// Gradients of every weight are several messages of half a megabyte, which MPI holds for no receiver: a rank that sends
/// to a silent one ends, too.
#[test]
fn a_silent_receiver_ends_the_job_within_the_time_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let (job, [_, rank]) =
        begun(&folder.path().join("run"), &["--rank-timeout", "2", "--method", "full", "--max-len", "2"]);
    signal("-STOP", &rank);
    let begin = Instant::now();
    let output = job.wait_with_output().expect("it ends");
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    assert!(
        !output.status.success() && stderr(&output).contains("for 2 s, the time-out"),
        "{}",
        stderr(&output)
    );
}

/// Programs, settings and inputs of one rank that are not those of the other.
#[test]
fn a_rank_that_is_another_one_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (out, other) = (folder.path().join("run"), folder.path().join("kron-train"));
    copy(PROGRAM, &other).expect("room");
    std::fs::OpenOptions::new()
        .append(true)
        .open(&other)
        .and_then(|mut file| std::io::Write::write_all(&mut file, b"\n"))
        .expect("room");
    let pair = |program: &Path, more: &[&str]| {
        let mut command = mpirun();
        command.args(["-n", "1", PROGRAM]).args(arguments(&out, &[])).args([":", "-n", "1"]);
        ended(command.arg(program).args(arguments(&out, more)))
    };
    refused(&pair(&other, &[]), "rank 1 has the program 0.1.0 ");
    refused(&pair(Path::new(PROGRAM), &["--seed", "7"]), "rank 1 has \"seed = 7\", but rank 0 \"seed = 0\"");
    let missing = pair(Path::new(PROGRAM), &["--model", "none.bin"]);
    refused(&missing, "rank 1: none.bin");
    // A rank whose arguments are refused ends before MPI starts.
    assert!(!pair(Path::new(PROGRAM), &["--no-such-option"]).status.success());
    assert!(!out.exists(), "nothing is written");
}

/// The first rank may write files of 4 KiB only.
#[test]
fn a_full_disk_ends_the_job_with_the_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    let script = "trap '' XFSZ; [ $OMPI_COMM_WORLD_RANK != 0 ] || ulimit -f 8; exec \"$@\"";
    let mut command = mpirun();
    command.args(["-n", "2", "sh", "-c", script, "sh", PROGRAM]).args(arguments(&out, &[]));
    let output = ended(&mut command);
    refused(&output, "error: ");
    assert!(stderr(&output).contains("checkpoint.safetensors"), "{}", stderr(&output));
    assert!(!out.join("checkpoint.safetensors").exists());
}

/// Under torchrun, and in a step of Slurm without MPI, a program of MPI would be a world of one rank.
#[test]
fn another_launcher_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    for (name, says) in [
        ("WORLD_SIZE", "2 ranks, but this program was built without NCCL"),
        ("SLURM_STEP_NUM_TASKS", "2 ranks, but there are 1: start the program by mpirun"),
    ] {
        let output = ended(Command::new(PROGRAM).args(arguments(&out, &[])).env(name, "2"));
        refused(&output, &format!("{name} announces {says}"));
    }
    assert!(!out.exists());
}
