package runtime

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// actions are what a filter may do.
var actions = []specs.LinuxSeccompAction{specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActErrno,
	specs.ActTrace, specs.ActAllow, specs.ActLog, specs.ActNotify}

// CheckSeccomp says what is wrong with a profile document.
func CheckSeccomp(document []byte) error {
	_, err := parseSeccomp(document)
	return err
}

func parseSeccomp(document []byte) (*specs.LinuxSeccomp, error) {
	var p specs.LinuxSeccomp
	if err := json.NewDecoder(bytes.NewReader(document)).Decode(&p); err != nil {
		return nil, fmt.Errorf("no valid JSON: %w", err)
	}
	if p.DefaultAction == "" {
		return nil, errors.New("it has no defaultAction")
	}
	if !slices.Contains(actions, p.DefaultAction) {
		return nil, fmt.Errorf("defaultAction: %q is no action", p.DefaultAction)
	}
	for i, s := range p.Syscalls {
		if !slices.Contains(actions, s.Action) {
			return nil, fmt.Errorf("syscalls[%d].action: %q is no action", i, s.Action)
		}
	}
	return &p, nil
}

// linuxSeccomp is the filter for a container whose capabilities are in spec
// already: the default filter depends on them.
func linuxSeccomp(c Seccomp, spec *specs.Spec) (*specs.LinuxSeccomp, error) {
	switch c.Type {
	case "", SeccompUnconfined:
		return nil, nil
	case SeccompRuntimeDefault:
		return seccomp.DefaultProfile(spec), nil
	case SeccompLocalhost:
		p, err := parseSeccomp(c.Profile)
		if err != nil {
			return nil, fmt.Errorf("the seccomp profile: %w", err)
		}
		return p, nil
	}
	return nil, fmt.Errorf("seccomp type %q is not Unconfined, RuntimeDefault or Localhost", c.Type)
}
