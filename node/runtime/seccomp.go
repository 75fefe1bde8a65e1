package runtime

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// linuxSeccomp is the filter for a container whose capabilities are in spec
// already: the default filter depends on them.
func linuxSeccomp(c Seccomp, spec *specs.Spec) (*specs.LinuxSeccomp, error) {
	switch c.Type {
	case "", SeccompUnconfined:
		return nil, nil
	case SeccompRuntimeDefault:
		return seccomp.DefaultProfile(spec), nil
	case SeccompLocalhost:
		var p specs.LinuxSeccomp
		d := json.NewDecoder(bytes.NewReader(c.Profile))
		if err := d.Decode(&p); err != nil {
			return nil, fmt.Errorf("the seccomp profile is no valid JSON: %w", err)
		}
		if p.DefaultAction == "" {
			return nil, fmt.Errorf("the seccomp profile has no defaultAction")
		}
		return &p, nil
	}
	return nil, fmt.Errorf("seccomp type %q is not Unconfined, RuntimeDefault or Localhost", c.Type)
}
