package runtime

import (
	"strings"
	"testing"
)

// sharedPID makes the sandbox of a pod with shareProcessNamespace.
func (e *env) sharedPID() *Sandbox {
	return e.sandbox(func(c *SandboxConfig) { c.ShareProcessNamespace = true })
}

// Who may trace processes reaches into those that share its namespace. The first
// of them belongs to no container: it must have nothing that the containers have not.
func TestSharedPIDNamespaceShowsNothingOfTheHost(t *testing.T) {
	e := newEnv(t)
	s := e.sharedPID()
	c := e.sh(`cat /proc/1/comm
		awk '/^Uid:|^Gid:|^CapPrm:|^CapEff:|^CapBnd:|^NoNewPrivs:|^Seccomp:/{print $1 $2}' /proc/1/status
		test -e /proc/1/root/. && ls -A /proc/1/root /proc/1/cwd | tr '\n' ' '
		echo; wc -l </proc/1/mounts
		ls -l /proc/1/fd | awk '/->/{print $NF}'`)
	c.Capabilities.Add = []string{"SYS_PTRACE"}
	want := `pause
Uid:65535
Gid:65535
CapPrm:0000000000000000
CapEff:0000000000000000
CapBnd:0000000000000000
NoNewPrivs:1
Seccomp:2
/proc/1/cwd:  /proc/1/root: 
1
/dev/null
/dev/null
/dev/null
`
	if got := e.output(s, c); got != want {
		t.Errorf("the first process of the namespace:\n%s\nwant\n%s", got, want)
	}
}

// A container may end the first process of the namespace, and all containers with
// it. Those that are started then have a namespace again.
func TestSharedPIDNamespaceIsMadeAgain(t *testing.T) {
	e := newEnv(t)
	s := e.sharedPID()
	for range 3 {
		a := e.start(s, e.sh("trap : TERM; sleep 1000 & while :; do wait; done"))
		b := e.start(s, e.sh("kill 1; exec sleep 1000"))
		for _, c := range []ContainerConfig{a, b} {
			if st := e.wait(s, c.ID); st.ExitCode != 137 {
				t.Errorf("container ended with %d", st.ExitCode)
			}
		}
	}
	if got := e.output(s, e.sh("cat /proc/1/comm; echo $$")); !strings.HasPrefix(got, "pause\n") || strings.HasSuffix(got, "\n1\n") {
		t.Errorf("not in a shared namespace: %q", got)
	}
}
