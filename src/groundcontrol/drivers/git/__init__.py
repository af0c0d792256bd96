"""Git repositories: fetched by the git command, which knows every transport, and read by pygit2, which is quick."""
