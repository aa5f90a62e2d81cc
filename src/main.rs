//! The `spanblk` program: parse the command line and run it.

fn main() -> std::process::ExitCode {
    spanblk::cli::main()
}
