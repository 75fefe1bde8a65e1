package runtime

// Identity is whom a container's first process runs as.
type Identity struct {
	UID, GID int64
	Groups   []int64 // supplemental ones, the primary among them
}

// Identify looks u up in an image's root file system, as StartContainer does.
func Identify(rootfs string, u User) (Identity, error) {
	r, err := resolveUser(rootfs, u)
	if err != nil {
		return Identity{}, err
	}
	id := Identity{UID: int64(r.UID), GID: int64(r.GID)}
	for _, g := range r.AdditionalGids {
		id.Groups = append(id.Groups, int64(g))
	}
	return id, nil
}
