//go:build cgo && !seccomp

package main

import (
	"errors"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// A shim without libseccomp refuses every profile, in libcontainer.

type translated struct {
	program *os.File
	beside  *specs.LinuxSeccomp
}

func (s *supervisor) translation(*specs.LinuxSeccomp) (*translated, error) { return nil, nil }

func translate() error { return errors.New("this program was built without seccomp") }
