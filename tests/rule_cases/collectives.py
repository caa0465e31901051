"""Operations across devices, on a mesh of one device."""
