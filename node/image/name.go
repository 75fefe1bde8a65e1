package image

import (
	"fmt"

	"github.com/distribution/reference"
)

// Normalize completes a reference as Docker users write it ("nginx" ->
// "docker.io/library/nginx:latest"). A reference with tag and digest means the
// digest. Its errors are ErrInvalidName.
func Normalize(ref string) (string, error) {
	n, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "", fmt.Errorf("%w: %q: %w", ErrInvalidName, ref, err)
	}
	return n.String(), nil
}

// repository is a normalized reference without tag and digest.
func repository(full string) (reference.Named, error) {
	n, err := reference.ParseNormalizedNamed(full)
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %w", ErrInvalidName, full, err)
	}
	return reference.TrimNamed(n), nil
}
